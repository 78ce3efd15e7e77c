"""The table of addresses: what an image may be fetched from, whatever `ipaddress` calls it."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftproject.core.addresses import is_public_address

INTERNAL = [
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:100.100.100.200",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "1.1.1.1", "::ffff:8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e"]
NO_ADDRESSES = ["", "localhost", "127.1", "0x7f000001", "2130706433", "example.com", "8.8.8.8 "]


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_address_is_not_public(address: str) -> None:
    assert is_public_address(address) is False


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public_address(address) is True


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert is_public_address(text) is False


# IANA's special-purpose registry, multicast and the reserved block: written here again, not read from the code.
SPECIAL_IPV4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "240.0.0.0/4"),
]


@st.composite
def special_ipv4(draw: st.DrawFn) -> int:
    network = ip_network(draw(st.sampled_from(SPECIAL_IPV4)))
    return int(network.network_address) + draw(st.integers(0, network.num_addresses - 1))


@given(number=special_ipv4())
def test_no_address_of_a_special_network_is_public_in_any_clothing(number: int) -> None:
    clothed = [
        str(IPv4Address(number)),
        str(IPv6Address(0xFFFF << 32 | number)),
        str(IPv6Address(number)),
        str(IPv6Address(0x0064FF9B << 96 | number)),
        str(IPv6Address(0x2002 << 112 | number << 80)),
        str(IPv6Address(0x2001 << 112 | (number ^ 0xFFFFFFFF))),
    ]
    assert [text for text in clothed if is_public_address(text)] == []


@given(number=st.integers(0, 2**128 - 1).filter(lambda number: number >> 125 != 1))
def test_nothing_outside_global_unicast_is_public(number: int) -> None:
    text = str(IPv6Address(number))
    assert not is_public_address(text) or text.startswith("::ffff:")


@given(text=st.text(max_size=40) | st.text("0123456789abcdef.:%[]x", max_size=45))
@example("1" * 5000)
@example("::1%" + "\0" * 10)
def test_any_text_has_an_answer(text: str) -> None:
    assert is_public_address(text) in {True, False}
