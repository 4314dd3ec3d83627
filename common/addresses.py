"""Addresses: of servers, as a person types them in settings and in the admin, and of clients. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """A request could be sent there. Blanks and line ends are refused, which `urlsplit` leaves out and a sender does
    not."""
    try:
        parts = urlsplit(url)
        has_place = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_place and url.isprintable() and " " not in url


def ip_of(text: str) -> IPv4Address | IPv6Address | None:
    """The IP address of a client, that of IPv4 where it is written as one of IPv6; None if the text is none."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def is_among(found: IPv4Address | IPv6Address, networks: Iterable[str]) -> bool:
    """The address is in one of these networks, which are spelt as `env.networks` takes them."""
    return any(found in ip_network(each) for each in networks)


def network_of(found: IPv4Address | IPv6Address) -> str:
    """Whose clients are counted together: whoever has one address of IPv6 has 2**64 of them."""
    return str(found if found.version == 4 else IPv6Network((found, 64), strict=False))
