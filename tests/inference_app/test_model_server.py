"""The one model server of the web process: started once, given up for runs, replaced when it dies."""

import inspect
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from django.utils import timezone

from ftproject.core.departure import ClientGoneError, Departure
from ftproject.core.errors import BusyError, ConflictError, InvalidInputError, UnavailableError
from ftproject.core.jobs import Job
from ftproject.core.lease import acquire_lease, lease_holder, release_lease, want_lease
from ftproject.core.models import Event, GpuLease
from ftproject.core.processes import birth_of
from ftproject.engine import remote
from inference_app import model_client
from inference_app import model_server as module
from inference_app.chat_format import openai_messages
from inference_app.device import this_holder
from inference_app.model_server import ModelServer
from inference_app.server_process import ServerSpec, server_log
from inference_app.session import ServedAdapter
from tests.core.jobs import make_evaluation, make_training
from tests.inference_app.conftest import Stub, heard, in_thread_of_its_own, say


def wait_until(holds: Any, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_nothing_runs_before_the_first_request(server: ModelServer, stub: Stub) -> None:
    assert stub.pids == []
    assert server.status()["loaded"] is False
    assert lease_holder() == ""
    assert not server.unload()


def test_requests_share_one_process_and_the_lease(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    first, second = heard(say(server, spec, "a")), heard(say(server, spec, "b"))
    assert first["pid"] == second["pid"] == stub.pids[0]
    assert len(stub.pids) == 1
    assert lease_holder() == this_holder()


def test_two_first_requests_at_once_start_one_server(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    stub.flags = ["--load-seconds", "0.5"]
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(in_thread_of_its_own, partial(say, server, spec, text)) for text in "abcd"]
        answers = [heard(job.result()) for job in asked]
    assert len(stub.pids) == 1
    assert {answer["pid"] for answer in answers} == set(stub.pids)
    assert [answer["messages"][0]["content"][0]["text"] for answer in answers] == list("abcd")


def test_an_adapter_is_loaded_once_and_then_asked_by_name(server: ModelServer, spec: ServerSpec) -> None:
    adapter = ServedAdapter("adapter_1", Path("/adapters/adapter_1"))
    assert heard(say(server, spec, "a", adapter=adapter))["model"] == "adapter_1"
    assert heard(say(server, spec, "b", adapter=adapter))["model"] == "adapter_1"  # the stub refuses a second load
    assert heard(say(server, spec, "c"))["model"] == spec.model_name


def test_another_base_takes_the_place_of_the_first(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    first = heard(say(server, spec, "a"))["pid"]
    other = heard(say(server, replace(spec, model_name="other"), "b"))
    assert other["model"] == "other"
    assert other["pid"] != first
    assert is_gone(first)
    assert lease_holder() == this_holder()


def test_loading_is_counted_for_the_request_that_waited_for_it(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    stub.flags = ["--load-seconds", "0.3"]
    with server.session(spec) as session:
        session.prepare(None)
        assert session.load_ms >= 300
    with server.session(spec) as session:
        session.prepare(None)
        assert session.load_ms == 0.0


def test_progress_of_loading_is_visible(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    stub.flags = ["--load-seconds", "2"]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "a"))
        wait_until(lambda: server.status()["loading_percent"] == 40)
        assert server.status()["loaded"] is False
        assert server.status()["since"] is None
        asked.result()
    status = server.status()
    assert (status["loaded"], status["mode"], status["memory_mb"]) == (True, "base", 7)
    assert status["since"] is not None


def test_loading_and_leaving_are_published(server: ModelServer, spec: ServerSpec) -> None:
    say(server, spec, "a", adapter=ServedAdapter("adapter_1", Path("/adapters/adapter_1")))
    server.unload()
    events = list(Event.objects.filter(type="model_status").values_list("data", flat=True))
    assert events == [
        {"loaded": True, "mode": "finetuned", "adapter": "adapter_1"},
        {"loaded": False, "mode": None, "adapter": None},
    ]


def test_a_server_killed_in_a_request_is_503_and_the_next_request_starts_another(
    server: ModelServer, stub: Stub, spec: ServerSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnavailableError) as caught:
        say(server, spec, "die")
    assert caught.value.code == "model_server_failed"
    assert "last words" not in caught.value.detail + caught.value.hint
    assert "last words of the stub" in caplog.text
    assert lease_holder() == ""
    assert heard(say(server, spec, "a"))["pid"] == stub.pids[1]


def test_a_server_killed_between_requests_is_replaced(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    os.kill(heard(say(server, spec, "a"))["pid"], signal.SIGKILL)
    wait_until(lambda: server.status()["loaded"] is False)
    assert heard(say(server, spec, "b"))["pid"] == stub.pids[1]


def test_tending_notices_a_dead_server_and_frees_the_device(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    os.kill(heard(say(server, spec, "a"))["pid"], signal.SIGKILL)
    wait_until(lambda: server.child is not None and not server.child.is_alive)
    server.tend()
    assert lease_holder() == ""
    assert server.child is None


def test_an_answer_that_is_no_completion_counts_as_a_crash(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    with pytest.raises(UnavailableError, match="ended before"):
        say(server, spec, "garbage")
    assert is_gone(stub.pids[0])


def test_a_refusal_of_the_request_leaves_the_server_alone(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    with pytest.raises(InvalidInputError) as caught:
        say(server, spec, "fail 400 prompt_too_long")
    assert caught.value.code == "prompt_too_long"
    assert heard(say(server, spec, "a"))["pid"] == stub.pids[0]


def test_a_failure_inside_the_server_ends_it(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    with pytest.raises(UnavailableError) as caught:
        say(server, spec, "fail 500 generation_failed")
    assert caught.value.code == "generation_failed"
    assert is_gone(stub.pids[0])
    assert lease_holder() == ""


@pytest.mark.parametrize(("status", "code"), [(503, "out_of_memory"), (504, "generation_timeout")])
def test_one_answer_that_was_too_much_leaves_the_server_to_the_others(
    server: ModelServer, stub: Stub, spec: ServerSpec, status: int, code: str
) -> None:
    with pytest.raises(UnavailableError) as caught:
        say(server, spec, f"fail {status} {code}")
    assert caught.value.code == code
    assert heard(say(server, spec, "a"))["pid"] == stub.pids[0]


def test_requests_are_answered_beside_each_other(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    say(server, spec, "a")
    started = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.5"))) for _ in range(6)]
        assert {job.result()["pid"] for job in asked} == {stub.pids[0]}
    assert time.monotonic() - started < 1.5


def test_a_failure_lets_the_answers_beside_it_end_and_the_next_one_meets_a_new_server(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    with ThreadPoolExecutor(2) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.8")))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        with pytest.raises(UnavailableError):
            say(server, spec, "fail 500 generation_failed")
        after = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "b")))
        assert flying.result()["pid"] == stub.pids[0]
        assert after.result()["pid"] == stub.pids[1]


def test_another_base_waits_for_the_answers_of_the_first(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    say(server, spec, "a")
    with ThreadPoolExecutor(1) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.5")))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        assert heard(say(server, replace(spec, model_name="other"), "b"))["pid"] == stub.pids[1]
        assert flying.result()["pid"] == stub.pids[0]


def test_a_client_that_leaves_ends_its_answer_and_nobody_elses(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    departure = Departure()
    with ThreadPoolExecutor(2) as threads:
        gone = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "until cancelled", departure=departure))
        stays = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.5")))
        wait_until(lambda: len(stub.heard) == 3)
        departure.happen()
        with pytest.raises(ClientGoneError):
            gone.result(timeout=5)
        assert stays.result()["pid"] == stub.pids[0]


def test_a_client_that_has_left_already_is_not_asked_for(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    departure = Departure()
    departure.happen()
    with pytest.raises(ClientGoneError):
        say(server, spec, "a", departure=departure)
    assert stub.heard == []


def test_a_client_that_leaves_while_it_waits_for_the_device_waits_no_longer(
    server: ModelServer, spec: ServerSpec
) -> None:
    assert acquire_lease("evaluation:1")
    departure = Departure()
    threading.Timer(0.3, departure.happen).start()
    started = time.monotonic()
    with pytest.raises(ClientGoneError):
        say(server, spec, "a", wait_seconds=20, departure=departure)
    assert time.monotonic() - started < 3


def test_a_client_that_leaves_while_others_are_answered_takes_no_model_from_them(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    departure = Departure()
    with ThreadPoolExecutor(2) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "sleep 3"))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        other = partial(say, server, replace(spec, model_name="other"), "b", departure=departure)
        waiting = threads.submit(in_thread_of_its_own, other)
        wait_until(lambda: len(server.turnstile) == 1)
        departure.happen()
        with pytest.raises(ClientGoneError):
            waiting.result(10)
        assert not flying.done()
        flying.result(10)
    assert heard(say(server, spec, "c"))["pid"] == stub.pids[0]


def test_the_status_of_a_server_that_was_just_closed_is_nothing(tmp_path: Path) -> None:
    client = model_client.ModelClient(tmp_path / "s.sock")
    client.close()
    assert client.status() is None


def test_lines_of_a_stream_end_where_events_do() -> None:
    sent = [b'data: "a\xe2\x80', b'\xa8b\xc2\x85c"\r\n\n', b"data: [DONE]"]
    response = httpx.Response(200, content=iter(sent))
    assert list(remote.sent_lines(response)) == ['data: "a\u2028b\x85c"', "", "data: [DONE]"]


def test_idle_connections_are_let_go_before_the_server_closes_them() -> None:
    closes_after = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert max(model_client.KEPT_SECONDS, remote.KEPT_SECONDS) < closes_after


def test_a_stream_comes_piece_by_piece(server: ModelServer, spec: ServerSpec) -> None:
    with server.session(spec) as session:
        chunks = list(session.stream({"messages": openai_messages("stream", [])}))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "one ", "two", None]


@pytest.mark.parametrize("text", ["stream break", "stream garbage", "stream die"])
def test_a_stream_that_breaks_off_never_passes_for_a_whole_answer(
    server: ModelServer, stub: Stub, spec: ServerSpec, text: str
) -> None:
    with pytest.raises(UnavailableError), server.session(spec) as session:
        list(session.stream({"messages": openai_messages(text, [])}))
    assert heard(say(server, spec, "a"))["pid"] == stub.pids[1]


def test_a_stream_is_refused_as_a_whole_answer_is(server: ModelServer, spec: ServerSpec) -> None:
    with pytest.raises(InvalidInputError) as caught, server.session(spec) as session:
        list(session.stream({"messages": openai_messages("fail 400 prompt_too_long", [])}))
    assert caught.value.code == "prompt_too_long"


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again_later(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    stub.flags = ["--load-error", "no such weights"]
    with pytest.raises(UnavailableError, match="no such weights"):
        say(server, spec, "a")
    assert lease_holder() == ""
    stub.flags = []
    assert say(server, spec, "a")


def test_a_server_that_cannot_be_started_gives_the_device_back(server: ModelServer, spec: ServerSpec) -> None:
    server.command = lambda spec, socket: ["/nonexistent/python"]
    with pytest.raises(UnavailableError):
        say(server, spec, "a")
    assert lease_holder() == ""


def test_while_a_run_has_the_gpu_a_request_is_409_with_the_run_and_when_to_try_again(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    run = make_training(status=Job.Status.TRAINING, eta_seconds=12.3)
    assert acquire_lease(run.name)
    with pytest.raises(ConflictError) as caught:
        say(server, spec, "a")
    assert caught.value.code == "gpu_busy"
    assert caught.value.headers == {"Retry-After": "13"}
    assert caught.value.extra == {"run_kind": "training", "run_id": run.pk, "eta_seconds": 12.3}
    assert f"Training run {run.pk}" in caught.value.detail
    assert stub.pids == []


def test_a_request_can_wait_for_the_gpu(server: ModelServer, spec: ServerSpec) -> None:
    run = make_evaluation(status=Job.Status.EVALUATING)
    token = acquire_lease(run.name)
    assert token
    release = threading.Timer(0.6, in_thread_of_its_own, [lambda: release_lease(token)])
    release.start()
    started = time.monotonic()
    assert say(server, spec, "a", wait_seconds=10)
    assert 0.5 < time.monotonic() - started < 5
    release.join()


def test_waiting_ends_at_its_time(server: ModelServer, spec: ServerSpec) -> None:
    assert acquire_lease("evaluation:1")
    started = time.monotonic()
    with pytest.raises(ConflictError):
        say(server, spec, "a", wait_seconds=0.5)
    assert 0.5 <= time.monotonic() - started < 2


def test_who_waits_for_the_gpu_keeps_nobody_from_the_answer_that_it_is_busy(
    server: ModelServer, spec: ServerSpec
) -> None:
    assert acquire_lease("evaluation:1")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "a", wait_seconds=1.5))
        time.sleep(0.2)
        started = time.monotonic()
        with pytest.raises(ConflictError):
            say(server, spec, "b")
        assert time.monotonic() - started < 0.8
        with pytest.raises(ConflictError):
            waiting.result()


def test_an_idle_server_leaves_within_a_second_when_a_run_wants_the_gpu(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    run = make_training()
    assert acquire_lease(run.name) is None
    want_lease(run.name)
    started = time.monotonic()
    server.tend()
    assert time.monotonic() - started < 1
    assert is_gone(stub.pids[0])
    assert acquire_lease(run.name)


def test_a_run_that_wants_the_gpu_waits_for_the_answers_in_flight_only(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    with ThreadPoolExecutor(2) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.8")))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        run = make_training(status=Job.Status.QUEUED)
        want_lease(run.name)
        server.tend()  # may not take the server from under the request
        behind = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "b"))
        assert flying.result()["pid"] == stub.pids[0]
        with pytest.raises(ConflictError):
            behind.result()
    assert is_gone(stub.pids[0])
    assert acquire_lease(run.name)


def test_the_run_that_the_server_left_for_goes_before_new_requests(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    say(server, spec, "a")
    run = make_training()
    want_lease(run.name)
    server.tend()
    with pytest.raises(ConflictError) as caught:
        say(server, spec, "b")
    assert caught.value.extra["run_id"] == run.pk
    run.status = Job.Status.ERROR
    run.save()
    assert say(server, spec, "c"), "a run that was cancelled meanwhile keeps nobody waiting"


def test_an_unused_server_leaves(server: ModelServer, stub: Stub, spec: ServerSpec, settings: Any) -> None:
    say(server, spec, "a")
    server.tend()
    assert server.child is not None
    settings.INFERENCE_IDLE_SECONDS = 0
    server.tend()
    assert is_gone(stub.pids[0])
    assert lease_holder() == ""


def test_a_server_that_was_just_started_is_not_taken_for_unused(
    server: ModelServer, stub: Stub, spec: ServerSpec
) -> None:
    server.used_at = -1_000_000.0
    assert server.start_for(spec)
    server.tend()
    say(server, spec, "hello")
    assert len(stub.pids) == 1


def test_tending_beats_the_lease(server: ModelServer, spec: ServerSpec) -> None:
    say(server, spec, "a")
    long_ago = timezone.now() - timedelta(seconds=10)
    GpuLease.objects.update(heartbeat_at=long_ago)
    server.tend()
    assert GpuLease.objects.filter(heartbeat_at__gt=long_ago).exists()


def test_a_server_whose_lease_was_lost_is_killed(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    say(server, spec, "a")
    GpuLease.objects.update(token="somebody else's", holder="training:9")
    server.tend()
    assert is_gone(stub.pids[0])
    assert lease_holder() == "training:9"


def test_unloading_ends_the_process_and_frees_the_device(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    say(server, spec, "a")
    assert server.unload()
    assert is_gone(stub.pids[0])
    assert lease_holder() == ""
    assert not server.unload()


def test_unloading_lets_the_answer_in_flight_end(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    say(server, spec, "a")
    with ThreadPoolExecutor(1) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: heard(say(server, spec, "sleep 0.5")))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        assert server.unload()
        assert flying.result()["pid"] == stub.pids[0]


def test_unloading_kills_a_server_that_hangs(
    server: ModelServer, stub: Stub, spec: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.3)
    say(server, spec, "a")
    with ThreadPoolExecutor(1) as threads:
        flying = threads.submit(in_thread_of_its_own, lambda: say(server, spec, "sleep 60"))
        wait_until(lambda: len(stub.heard) == 2)  # "a" and the one in flight
        assert server.unload()
        with pytest.raises(UnavailableError):
            flying.result()
    assert is_gone(stub.pids[0])


def test_a_server_deaf_to_sigterm_is_killed(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    stub.flags = ["--deaf"]
    say(server, spec, "a")
    server.leave(grace_seconds=0.2)
    assert is_gone(stub.pids[0])


def test_too_many_requests_at_once_are_429(
    server: ModelServer, spec: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.requests = threading.BoundedSemaphore(1)
    with server.session(spec), pytest.raises(BusyError) as caught:
        say(server, spec, "b")
    assert caught.value.headers["Retry-After"]
    assert say(server, spec, "c"), "a place that was used is free again"


def test_the_lease_of_a_killed_web_process_is_taken_over_at_once(server: ModelServer, spec: ServerSpec) -> None:
    host, _, born = this_holder().removeprefix("inference:").rsplit(":", 2)
    assert acquire_lease(f"inference:{host}:4194304:{born}")  # no process has this number
    assert say(server, spec, "a")
    assert lease_holder() == this_holder()


def test_another_living_web_process_keeps_its_lease(server: ModelServer, spec: ServerSpec) -> None:
    other = os.getppid()
    host = this_holder().removeprefix("inference:").rsplit(":", 2)[0]
    assert acquire_lease(f"inference:{host}:{other}:{birth_of(other)}")
    with pytest.raises(ConflictError, match="Another server process"):
        say(server, spec, "a")


def test_closing_from_an_event_loop_ends_the_server(server: ModelServer, stub: Stub, spec: ServerSpec) -> None:
    import asyncio

    say(server, spec, "a")

    async def end() -> None:
        server.close()

    asyncio.run(end())
    assert is_gone(stub.pids[0])
    assert lease_holder() == ""


def test_a_large_log_is_begun_anew(server: ModelServer, spec: ServerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_app.server_process.LOG_MAX_BYTES", 10)
    server_log().write_text("x" * 11)
    say(server, spec, "a")
    assert "x" not in server_log().read_text()
    assert server_log().with_suffix(".log.1").read_text() == "x" * 11
