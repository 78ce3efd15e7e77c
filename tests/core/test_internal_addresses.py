"""No internal address is ever connected to, whether written out, by a name, among public ones, or by a redirect."""

import random
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import pytest

from ftproject.core.fetch import fetch_image_bytes
from ftproject.core.vetted_network import FetchError
from tests.core.image_server import ImageServer, redirect

# IANA's special-purpose registries, and what the safety notes name besides: 192.0.0.192 (Oracle's metadata),
# 100.100.100.200 (Alibaba's), multicast, NAT64, 6to4, site-local.
INTERNAL_NETS = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
    "::/128", "::1/128", "::/96", "::ffff:0:0/112", "::ffff:10.0.0.0/104", "::ffff:127.0.0.0/104",
    "::ffff:169.254.0.0/112", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:10::/28", "2001:20::/28",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip
NAMED = ("169.254.169.254", "192.0.0.192", "100.100.100.200", "fd00:ec2::254", "2002:7f00:1::", "fec0::1", "224.0.0.1")
# Other spellings of loopback, which the C library understands.
SPELLINGS = ("127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0", "0x7f.1", "127.0.0.1.", "[::ffff:7f00:1]", "[::]")
PUBLIC = "93.184.216.34"
SAMPLES = 6


def internal_addresses() -> list[str]:
    draw = random.Random(0)
    found = list(NAMED)
    for text in INTERNAL_NETS:
        net = ip_network(text)
        found += [str(net[0]), str(net[-1]), *(address_in(net, draw) for _ in range(SAMPLES))]
    return list(dict.fromkeys(found))


def address_in(net: IPv4Network | IPv6Network, draw: random.Random) -> str:
    return str(net[draw.randrange(net.num_addresses)])


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch, settings: Any) -> list[Any]:
    """Every address that anything tries to connect to; nothing is reached."""
    settings.IMAGE_ALLOWED_HOSTS = []
    settings.IMAGE_TIMEOUT_SECONDS = 5
    seen: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        seen.append(address)
        raise ConnectionRefusedError("nothing is reached in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the resolver answers, by name."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host not in table:
            return list(real(host, port, *args, **options))
        families = [(socket.AF_INET6 if ":" in text else socket.AF_INET, text) for text in table[host]]
        return [(family, socket.SOCK_STREAM, 6, "", (text, port)) for family, text in families]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


def is_refused(url: str) -> bool:
    with pytest.raises(FetchError) as refusal:
        fetch_image_bytes(url)
    return refusal.value.code in {"image_url_refused", "image_redirect_refused"}


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_internal_address_is_dialled_when_it_is_written_out(scheme: str, dialled: list[Any]) -> None:
    addresses = [bracketed(address) for address in internal_addresses()]
    assert len(addresses) > 200
    assert [address for address in addresses if not is_refused(f"{scheme}://{address}/a.png")] == []
    assert dialled == []


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_other_spelling_of_loopback_is_dialled(spelling: str, dialled: list[Any]) -> None:
    with pytest.raises(FetchError):  # refused, or no name at all: that is the C library's to say
        fetch_image_bytes(f"http://{spelling}/a.png")
    assert dialled == []


def test_no_name_leads_to_an_internal_address_alone_or_among_public_ones(
    dialled: list[Any], names: dict[str, list[str]]
) -> None:
    admitted = []
    for address in internal_addresses():
        for answers in ([address], [PUBLIC, address], [address, PUBLIC]):
            names["images.test"] = answers
            admitted += [] if is_refused("http://images.test/a.png") else [answers]
    assert admitted == []
    assert dialled == []


def test_a_public_address_is_dialled_so_that_these_tests_can_fail(
    dialled: list[Any], names: dict[str, list[str]]
) -> None:
    names["images.test"] = [PUBLIC]
    assert not is_refused("http://images.test/a.png")
    assert {address[0] for address in dialled} == {PUBLIC}


@pytest.fixture
def server(settings: Any) -> Iterator[ImageServer]:
    with ImageServer() as running:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{running.port}"]
        yield running


def test_no_redirect_leads_to_an_internal_address(server: ImageServer) -> None:
    admitted = []
    for address in internal_addresses():
        server.answers["/a.png"] = redirect(f"http://{bracketed(address)}/a.png")
        admitted += [] if is_refused(server.url("/a.png")) else [address]
    assert admitted == []
