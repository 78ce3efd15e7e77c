"""The image fetcher against a hostile server and a lying resolver."""

import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftproject.core.fetch import MAX_REDIRECTS, fetch_image_bytes
from ftproject.core.vetted_network import FetchError, VettedBackend
from tests.conftest import NetworkBlockedError
from tests.core.image_server import ImageServer, dripping, in_turn, redirect, response

BODY = b"these are the bytes of an image"
REAL_GETADDRINFO = socket.getaddrinfo


@pytest.fixture(autouse=True)
def patience(settings: Any) -> None:
    settings.IMAGE_TIMEOUT_SECONDS = 5
    settings.IMAGE_MAX_MB = 1
    settings.IMAGE_ALLOWED_HOSTS = []


@pytest.fixture
def server(settings: Any) -> Iterator[ImageServer]:
    """A server that the allow list admits."""
    with ImageServer() as running:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{running.port}"]
        yield running


class Resolver:
    """Answers names from a table, in turn when a name has several; literal addresses go to the real resolver."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): turns for name, turns in names.items()}
        self.asked: list[str] = []

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host not in self.answers:
            return list(REAL_GETADDRINFO(host, port, *args, **options))
        self.asked.append(host)
        turns = self.answers[host]
        addresses = turns.pop(0) if len(turns) > 1 else turns[0]
        return [
            (socket.AF_INET6 if ":" in text else socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))
            for text in addresses
        ]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**names: list[list[str]]) -> Resolver:
        resolver = Resolver(**names)
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        return resolver

    return install


def code_of(url: str) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_image_bytes(url)
    return caught.value.code


def test_an_image_of_an_allowed_host_is_fetched(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(BODY)
    assert fetch_image_bytes(server.url("/cat.png")) == BODY


def test_the_request_names_its_host_and_carries_neither_cookies_nor_credentials(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(BODY, Set_Cookie="a=b")
    fetch_image_bytes(server.url("/cat.png"))
    fetch_image_bytes(server.url("/cat.png"))
    for _, headers in server.requests:
        assert headers["host"] == f"127.0.0.1:{server.port}"
        assert not {"cookie", "authorization", "referer"} & set(headers)


def test_a_proxy_of_the_environment_is_not_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answers["/cat.png"] = response(BODY)
    assert fetch_image_bytes(server.url("/cat.png")) == BODY


def test_a_host_name_on_the_allow_list_keeps_its_name_in_the_host_header(
    server: ImageServer, settings: Any, resolve: Any
) -> None:
    settings.IMAGE_ALLOWED_HOSTS = [f"images.test:{server.port}"]
    resolve(images_test=[["127.0.0.1"]])
    server.answers["/cat.png"] = response(BODY)
    assert fetch_image_bytes(server.url("/cat.png", "images.test")) == BODY
    assert server.requests[0][1]["host"] == f"images.test:{server.port}"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/cat.png",
        "gopher://example.com/",
        "http://",
        "http:///cat.png",
        "https://user@example.com/cat.png",
        "https://user:secret@example.com/cat.png",
        "http://example.com:0/cat.png",
        "http://example.com:22/cat.png",
        "http://example.com:99999/cat.png",
        "http://example.com:8080/cat.png",
        "http://[::1",
        "http://exa mple.com/cat.png",
        "//example.com/cat.png",
        "example.com/cat.png",
        "http://example.com/\x00cat.png",
        "https://example.com/" + "a" * 10_000,
    ],
)
def test_a_url_of_the_wrong_form_is_refused_before_the_resolver_is_asked(url: str, resolve: Any) -> None:
    resolver = resolve(example_com=[["93.184.216.34"]])
    assert code_of(url) == "image_url_refused"
    assert resolver.asked == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0", "localhost", "localhost.", "[::1]"],
)
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    assert code_of(f"http://{host}/cat.png") in {"image_url_refused", "image_fetch_failed"}


@pytest.mark.parametrize("host", ["169.254.169.254", "100.100.100.200", "192.0.0.192", "[fd00:ec2::254]"])
def test_cloud_metadata_services_are_refused(host: str) -> None:
    assert code_of(f"http://{host}/latest/meta-data/") == "image_url_refused"


@pytest.mark.parametrize("host", ["xn--a.test", "xn--0.test", "xn--zzzz-.test"])
@pytest.mark.parametrize("rest", ["", ":81", ":65535"])
def test_punycode_of_no_name_is_refused_and_no_traceback(monkeypatch: pytest.MonkeyPatch, host: str, rest: str) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert code_of(f"http://{host}{rest}/") == ("image_url_refused" if rest else "image_fetch_failed")


INTERNAL_HOSTS = [
    *("localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0", "127.0.0.1.", "[::1]", "[::ffff:10.0.0.1]"),
    *(
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[64:ff9b::a9fe:a9fe]",
        "inside.test",
        "\uff11\uff12\uff17.0.0.1",
        "%31.test",
    ),
    *(
        "127.0.0.1\\@a.test",
        "a.test#@127.0.0.1",
        "a.test:80@127.0.0.1",
        "a" * 300 + ".test",
        "xn--a",
        "a..test",
        "-",
        "*",
    ),
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scheme=st.sampled_from(["http", "https", "HTTP", "hTTps", "http:", "", "file", "http+unix"]),
    host=st.sampled_from(INTERNAL_HOSTS) | st.text(max_size=10).map(lambda text: text + ".test"),
    rest=st.sampled_from(
        ["", "/", ":80/", ":443", ":0/", ":65536/", ":\uff18\uff10/", "/\n", "?a", "#", "/\ud800", "/\0"]
    ),
)
def test_no_spelling_of_an_internal_host_is_reached(
    monkeypatch: pytest.MonkeyPatch, scheme: str, host: str, rest: str
) -> None:
    """Every name leads inside; whatever is made of the URL is a refusal, told as one."""

    def inside(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", inside)
        assert code_of(f"{scheme}://{host}{rest}") in {"image_url_refused", "image_host_unknown"}


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.5"], ["93.184.216.34", "10.0.0.5"], ["93.184.216.34", "::1"], ["2606:4700::1", "fec0::1"], []],
)
def test_one_address_that_is_not_public_spoils_the_lookup(addresses: list[str], resolve: Any) -> None:
    resolve(mixed_test=[addresses])
    assert code_of("http://mixed.test/cat.png") == "image_url_refused"


def test_the_refusal_does_not_tell_the_internal_address(resolve: Any) -> None:
    resolve(intranet_test=[["10.9.8.7"]])
    with pytest.raises(FetchError) as caught:
        fetch_image_bytes("http://intranet.test/cat.png")
    assert "10.9.8.7" not in caught.value.message


def test_the_connection_goes_to_the_very_address_that_was_checked(resolve: Any) -> None:
    resolver = resolve(rebinding_test=[["93.184.216.34"], ["127.0.0.1"]])
    # The tests' own guard refuses the dial and says where it went.
    with pytest.raises(NetworkBlockedError, match=r"93\.184\.216\.34"):
        fetch_image_bytes("http://rebinding.test/cat.png")
    assert resolver.asked == ["rebinding.test"]


def test_an_unknown_host_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert code_of("http://nowhere.test/cat.png") == "image_fetch_failed"


def test_a_unicode_host_is_asked_for_in_its_ascii_form(resolve: Any) -> None:
    resolver = resolve(**{"xn--bcher-kva_test": [["10.0.0.1"]]})
    assert code_of("http://bücher.test/cat.png") == "image_url_refused"
    assert resolver.asked == ["xn--bcher-kva.test"]


def test_redirects_within_the_limit_are_followed(server: ImageServer) -> None:
    server.answers["/a"] = redirect("/b")
    server.answers["/b"] = redirect(server.url("/c"))
    server.answers["/c"] = response(BODY)
    assert fetch_image_bytes(server.url("/a")) == BODY


def test_a_redirect_loop_ends(server: ImageServer) -> None:
    server.answers["/a"] = redirect("/a")
    assert code_of(server.url("/a")) == "image_fetch_failed"
    assert len(server.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost/secret",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "http://user@example.com/",
        "http://[::1]/",
        "http://[::1",
        "//127.0.0.1/secret",
    ],
)
def test_a_redirect_to_something_refused_is_refused(server: ImageServer, location: str) -> None:
    server.answers["/a"] = redirect(location)
    assert code_of(server.url("/a")) == "image_redirect_refused"


def test_another_port_of_an_allowed_host_is_not_allowed(server: ImageServer, settings: Any) -> None:
    settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{server.port + 1}"]
    server.answers["/cat.png"] = response(BODY)
    assert code_of(server.url("/cat.png")) == "image_url_refused"
    assert server.requests == []


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "204 No Content", "206 Partial Content"])
def test_another_status_than_200_fails_at_once(server: ImageServer, status: str) -> None:
    server.answers["/cat.png"] = response(b"", status)
    assert code_of(server.url("/cat.png")) == "image_fetch_failed"
    assert len(server.requests) == 1


def test_a_server_error_is_asked_again(server: ImageServer) -> None:
    busy = response(b"", "503 Service Unavailable")
    server.answers["/cat.png"] = in_turn(busy, busy, response(BODY))
    assert fetch_image_bytes(server.url("/cat.png")) == BODY
    assert len(server.requests) == 3


def test_a_server_that_stays_broken_is_given_up(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(b"", "500 Internal Server Error")
    assert code_of(server.url("/cat.png")) == "image_fetch_failed"
    assert len(server.requests) == 3


def test_a_body_announced_too_large_is_not_read(server: ImageServer) -> None:
    server.answers["/cat.png"] = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"
    assert code_of(server.url("/cat.png")) == "image_too_large"


def test_an_endless_chunked_body_is_cut_off(server: ImageServer) -> None:
    def endless(_: ImageServer) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    server.answers["/cat.png"] = endless
    assert code_of(server.url("/cat.png")) == "image_too_large"


def test_a_gzip_bomb_is_counted_after_decompression(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(gzip.compress(bytes(50 * 1024 * 1024)), Content_Encoding="gzip")
    assert code_of(server.url("/cat.png")) == "image_decompression_bomb"


@pytest.mark.parametrize(("coding", "body"), [("gzip", gzip.compress(BODY, mtime=0)), ("deflate", zlib.compress(BODY))])
def test_a_compressed_body_is_decompressed(server: ImageServer, coding: str, body: bytes) -> None:
    server.answers["/cat.png"] = response(body, Content_Encoding=coding)
    assert fetch_image_bytes(server.url("/cat.png")) == BODY


@pytest.mark.parametrize(("coding", "body"), [("br", BODY), ("gzip", BODY)])
def test_a_coding_that_cannot_be_undone_fails(server: ImageServer, coding: str, body: bytes) -> None:
    server.answers["/cat.png"] = response(body, Content_Encoding=coding)
    assert code_of(server.url("/cat.png")) == "image_fetch_failed"


def test_a_body_shorter_than_announced_fails(server: ImageServer) -> None:
    server.answers["/cat.png"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"
    assert code_of(server.url("/cat.png")) == "image_fetch_failed"


def test_an_answer_that_is_no_http_fails(server: ImageServer) -> None:
    server.answers["/cat.png"] = b"SSH-2.0-OpenSSH_9.2p1\r\n"
    assert code_of(server.url("/cat.png")) == "image_fetch_failed"


def test_a_dripping_body_ends_with_the_deadline_of_the_whole_transfer(server: ImageServer, settings: Any) -> None:
    settings.IMAGE_TIMEOUT_SECONDS = 1
    server.answers["/cat.png"] = dripping(BODY, pause=0.2)
    began = time.monotonic()
    assert code_of(server.url("/cat.png")) == "image_timeout"
    assert time.monotonic() - began < 2.5


def test_a_dripping_head_ends_with_the_deadline_too(server: ImageServer, settings: Any) -> None:
    settings.IMAGE_TIMEOUT_SECONDS = 1

    def drip(_: ImageServer) -> Iterator[bytes]:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 100:
            time.sleep(0.1)
            yield bytes([byte])

    server.answers["/cat.png"] = drip
    began = time.monotonic()
    assert code_of(server.url("/cat.png")) == "image_timeout"
    assert time.monotonic() - began < 2.5


def test_a_port_where_nobody_listens_fails(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{port}"]
    assert code_of(f"http://127.0.0.1:{port}/cat.png") == "image_fetch_failed"


def test_a_unix_socket_is_never_dialled() -> None:
    with pytest.raises(FetchError):
        VettedBackend().connect_unix_socket("/run/docker.sock")


def test_a_certificate_that_nobody_vouches_for_is_refused(settings: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(3)  # ends the thread
        port = listener.getsockname()[1]
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{port}"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self_signed(tmp_path))
        serve = threading.Thread(target=serve_tls, args=(listener, context), daemon=True)
        serve.start()
        with pytest.raises(FetchError, match="certificate"):
            fetch_image_bytes(f"https://127.0.0.1:{port}/cat.png")


def serve_tls(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            context.wrap_socket(connection, server_side=True).close()
        except ssl.SSLError:
            continue
        except OSError:
            return


def self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(secret + certificate)
    return path
