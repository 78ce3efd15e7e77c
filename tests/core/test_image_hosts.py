"""Manners towards image hosts: a share for each, turns among them, and an end of asking one that is gone."""

import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest

from ftproject.core.fetch import fetch_image_bytes, host_of
from ftproject.core.image_hosts import GIVE_UP_AFTER, HostLanes, HostRecord
from ftproject.core.vetted_network import FetchError
from tests.core.image_server import ImageServer, in_turn, redirect, response


class Gauge:
    """How many calls run at once, in all and for each host."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def visit(self, host: str, seconds: float = 0.02) -> str:
        with self.lock:
            for name in (host, "all"):
                self.now[name] += 1
                self.most[name] = max(self.most[name], self.now[name])
        time.sleep(seconds)
        with self.lock:
            self.now.subtract([host, "all"])
        return host


def test_no_host_gets_more_than_its_share_and_all_together_no_more_than_the_threads() -> None:
    gauge, lanes = Gauge(), HostLanes(threads=6, per_host=2)
    hosts = [f"h{number % 5}" for number in range(60)]
    futures = [lanes.submit(host, partial(gauge.visit, host)) for host in hosts]
    assert [future.result(timeout=10) for future in futures] == hosts
    assert max(count for name, count in gauge.most.items() if name != "all") == 2
    assert 4 <= gauge.most["all"] <= 6
    assert not lanes.running
    assert not lanes.waiting
    lanes.close()


def test_a_slow_host_does_not_keep_the_others_waiting() -> None:
    leave, lanes = threading.Event(), HostLanes(threads=4, per_host=2)
    for _ in range(50):
        lanes.submit("slow", lambda: leave.wait(10))
    began = time.monotonic()
    quick = [lanes.submit("quick", lambda: time.sleep(0.01)) for _ in range(20)]
    for future in quick:
        future.result(timeout=5)
    assert time.monotonic() - began < 2
    leave.set()
    lanes.close()


def test_an_error_reaches_the_one_who_waits_and_frees_the_turn() -> None:
    lanes = HostLanes(threads=2, per_host=1)
    failing = [lanes.submit("host", lambda: 1 // 0) for _ in range(3)]
    for future in failing:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=5)
    assert lanes.submit("host", lambda: "fine").result(timeout=5) == "fine"
    lanes.close()


def test_closing_forgets_what_waits() -> None:
    leave, ran, lanes = threading.Event(), threading.Event(), HostLanes(threads=1, per_host=1)
    first = lanes.submit("host", lambda: leave.wait(10))
    lanes.submit("host", ran.set)
    lanes.close()
    leave.set()
    first.result(timeout=5)
    assert not ran.wait(0.2)


def unreachable(settings: Any) -> str:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{port}"]
    return f"http://127.0.0.1:{port}/cat.png"


def code_of(url: str, hosts: HostRecord) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_image_bytes(url, hosts=hosts)
    return caught.value.code


def test_a_host_that_does_not_connect_is_given_up_and_another_record_tries_again(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftproject.core.fetch.BACKOFF_SECONDS", 0.001)
    url, hosts = unreachable(settings), HostRecord()
    codes = [code_of(url, hosts) for _ in range(GIVE_UP_AFTER + 2)]
    assert codes == ["image_fetch_failed"] * GIVE_UP_AFTER + ["image_host_given_up"] * 2
    assert code_of(url, HostRecord()) == "image_fetch_failed"


def test_an_answer_of_any_kind_starts_the_count_anew(settings: Any) -> None:
    hosts = HostRecord()
    for _ in range(3):
        for _ in range(GIVE_UP_AFTER - 1):
            hosts.note_failure("a:80")
        hosts.note_answer("a:80")
    hosts.check("a:80")
    hosts.note_failure("a:80")
    hosts.check("a:80")


def test_a_server_that_answers_errors_is_not_given_up(settings: Any) -> None:
    hosts = HostRecord()
    with ImageServer() as server:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{server.port}"]
        codes = {code_of(server.url("/gone.png"), hosts) for _ in range(GIVE_UP_AFTER + 2)}
    assert codes == {"image_fetch_failed"}


def test_a_redirect_to_a_host_that_is_gone_does_not_count_against_the_one_that_redirects(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftproject.core.fetch.BACKOFF_SECONDS", 0.001)
    gone, hosts = unreachable(settings), HostRecord()
    with ImageServer() as server:
        settings.IMAGE_ALLOWED_HOSTS = [*settings.IMAGE_ALLOWED_HOSTS, f"127.0.0.1:{server.port}"]
        server.answers |= {"/a.png": redirect(gone), "/b.png": response(b"image")}
        for _ in range(GIVE_UP_AFTER):
            code_of(server.url("/a.png"), hosts)
        assert code_of(server.url("/a.png"), hosts) == "image_host_given_up"
        assert fetch_image_bytes(server.url("/b.png"), hosts=hosts) == b"image"
    assert hosts.given_up == {host_of(gone)}


def test_a_server_that_recovers_within_the_attempts_is_no_failure(settings: Any) -> None:
    hosts = HostRecord()
    with ImageServer() as server:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{server.port}"]
        server.answers["/a.png"] = in_turn(response(b"", "503 Service Unavailable"), response(b"image"))
        assert fetch_image_bytes(server.url("/a.png"), hosts=hosts) == b"image"
    assert not hosts.failures


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.test/x", "a.test:80"),
        ("https://A.test/x", "a.test:443"),
        ("http://a.test:8080/x", "a.test:8080"),
        ("http://[2001:db8::1]/x", "2001:db8::1:80"),
        ("ftp://a.test/x", ""),
        ("http://[::1", ""),
        ("no url", ""),
    ],
)
def test_the_host_of_a_url_is_name_and_port(url: str, host: str) -> None:
    assert host_of(url) == host
