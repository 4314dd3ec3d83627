"""Addresses as a person types them, in settings and in the admin. Pure."""

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
