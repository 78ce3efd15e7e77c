"""Which network addresses a fetch on behalf of a user may reach: public ones, decided by the resolved address."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# `ipaddress` calls these global although they lead inside: 192.0.0.192 is Oracle's metadata service (measured).
_IPV4_REFUSED = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10")))
# Everything outside 2000::/3 is no public unicast: NAT64, site-local fec0::/10, IPv4-compatible ::/96, multicast.
_IPV6_UNICAST = ip_network("2000::/3")
# Teredo and its neighbours, documentation, 6to4 (carries any IPv4 address inside), documentation again.
_IPV6_REFUSED = tuple(map(ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def is_public_address(text: str) -> bool:
    """Whether the address (no host name) is a public unicast address; what is no address is not public."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return _is_public_ipv4(address)
    return address in _IPV6_UNICAST and address.is_global and not any(address in net for net in _IPV6_REFUSED)


def _is_public_ipv4(address: IPv4Address) -> bool:
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address in net for net in _IPV4_REFUSED)
