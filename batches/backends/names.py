"""The addresses that model servers' names stand for, as the machine's own resolver tells.

libcurl asks it for each kind of address by itself, for every request. So a name that /etc/hosts knows by IPv4 alone is
asked of the name servers too, for IPv6; where those do not answer, as in a network without the internet, the threads
that ask fill up after some 20 requests, and no request gets through any more.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

# So long addresses are taken for what the name stands for; then it is asked for again, and they are used meanwhile.
FRESH_FOR_S = 60.0


@dataclass
class _Name:
    addresses: list[str] = field(default_factory=list)
    asked_at: float = 0.0
    is_asked: bool = False  # a thread asks for it at the moment


class Names:
    """For one thread: `found` is called in another one, and has to bring what it is given into that one."""

    def __init__(self, found: Callable[[str, int, list[str]], None]) -> None:
        """`found` gets host, port and addresses; none if the name stands for nothing now."""
        self._found = found
        self._names: dict[tuple[str, int], _Name] = {}

    def addresses(self, host: str, port: int) -> list[str] | None:
        """Where to connect to. None: it is being asked for, and `found` will be called."""
        name = self._names.setdefault((host, port), _Name())
        is_fresh = name.addresses and time.monotonic() < name.asked_at + FRESH_FOR_S
        if not is_fresh and not name.is_asked:
            name.is_asked = True
            # One for each name at most, and a daemon: a question may take half a minute, and cannot be ended.
            thread = threading.Thread(target=self._ask, args=(host, port), name="name", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be had at the moment
                self._found(host, port, [])
        return name.addresses or None

    def learn(self, host: str, port: int, addresses: list[str]) -> None:
        """What `found` was called with. Older addresses stay if there are none now."""
        name = self._names[host, port]
        name.is_asked, name.asked_at = False, time.monotonic()
        name.addresses = addresses or name.addresses

    def forget(self, host: str, port: int) -> None:
        """Nothing answers there: the next request asks for the name."""
        if name := self._names.get((host, port)):
            name.addresses = []

    def _ask(self, host: str, port: int) -> None:
        try:
            found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            # One that names an interface, of the link alone, is none that libcurl takes.
            addresses = [address for address in found if "%" not in address]
        except (OSError, ValueError):  # also of what is no name at all
            addresses = []
        self._found(host, port, addresses)


@cache
def is_address(host: str) -> bool:
    """Whether it is no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
