"""Machines that are played on one: network namespaces, each with a cable to the one that measures.

All of it is in a network of its own, which only the processes that are started here see: the machine's own addresses
and rules stay as they are. Needs root and `ip` (iproute2).
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from django.core.management.base import CommandError

CLONE_NEWNET = 0x40000000
# 198.18.0.0/15 is for measuring (RFC 2544). The head is at one address for all machines.
HEAD = "198.18.0.1"


class NotHere(CommandError):
    """This machine cannot measure it. The text says what is missing."""


@dataclass(frozen=True)
class Machine:
    namespace: str
    address: str

    def command(self, command: list[str]) -> list[str]:
        """The command, run on this machine."""
        return ["ip", "netns", "exec", self.namespace, *command]


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines, each in reach of HEAD, where this process and its children are meanwhile. Raises NotHere."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NotHere("Machines are played by network namespaces, which need root and `ip` (iproute2).")
    with _own_network(), ExitStack() as stack:
        _ip("link", "set", "lo", "up")
        _ip("address", "add", f"{HEAD}/32", "dev", "lo")
        yield [stack.enter_context(_machine(number)) for number in range(1, count + 1)]


@contextmanager
def _own_network() -> Iterator[None]:
    """A network of its own for this thread, and for what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise NotHere(f"Machines are played by network namespaces, which cannot be made here: {reason}.")
        try:
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


@contextmanager
def _machine(number: int) -> Iterator[Machine]:
    namespace, cable = f"batch-{os.getpid()}-{number}", f"machine{number}"
    head, address = f"198.18.{number}.1", f"198.18.{number}.2"
    try:
        _ip("netns", "add", namespace)
    except CommandError as error:
        raise NotHere(f"A network namespace cannot be made here: {error}") from None
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("address", "add", f"{head}/24", "dev", cable)
        _ip("link", "set", cable, "up")
        for words in (
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "lo", "up"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", head],
        ):
            _ip("-n", namespace, *words)
        yield Machine(namespace, address)
    finally:
        with suppress(CommandError):
            _ip("netns", "delete", namespace)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"ip {' '.join(words)}: {done.stderr.strip()}")
