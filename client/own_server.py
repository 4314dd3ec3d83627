"""The server that a command uses: the one that runs, or one of this checkout that is started until the command ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from client.api import Server
from client.checkout import Checkout
from client.trouble import Trouble

START_S = 300.0  # the first start with the embedded model installs it
STOP_S = 60.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Found:
    """A server that answers. `is_own`: this command started it, and stops it when it ends."""

    server: Server
    health: dict[str, Any]
    is_own: bool = False

    @property
    def key(self) -> str:
        """What the server is known by, whatever its address is today."""
        return str(self.health.get("instance") or self.server.base)


@contextmanager
def found(checkout: Checkout, address: str | None, tell: Callable[[str], None]) -> Iterator[Found]:
    """The server at `address`; without one, the own server, which a checkout starts if it does not run.

    Raises Trouble if nothing answers at `address`, or if the server at the own address is another's: what a person
    sends reaches nobody whom they did not name.
    """
    server, health = asked(checkout, address)
    if health is None and (address or checkout.root is None):
        raise Trouble(f"No batch server answers at {server.base}. Start one there: {checkout.server_command}.")
    if health is not None:
        if not address:
            refuse_another(checkout, server, health)
        tell(described(checkout, server, health))
        yield Found(server, health)
        return
    with started(checkout, server, tell) as health:
        _allow_key(checkout, server, health, is_named=False)
        yield Found(server, health, is_own=True)


def asked(checkout: Checkout, address: str | None) -> tuple[Server, dict[str, Any] | None]:
    """The server at `address`, or at the own one, and its health; None if no batch server answers.

    It gets the key only if a person named it, or if it is our own: another program may listen at the own address, and
    the key may be one of OpenAI's.
    """
    server = Server(address or checkout.address, certificates=checkout.certificates)
    health = server.health()
    _allow_key(checkout, server, health, is_named=bool(address))
    return server, health


def _allow_key(checkout: Checkout, server: Server, health: dict[str, Any] | None, *, is_named: bool) -> None:
    if is_named or (health is not None and checkout.data_dir_of(health.get("instance")) is not None):
        server.send_key(checkout.api_key)
    else:
        server.about_key = (
            "no key was sent: this server's data is in none of your own directories. To send OPENAI_API_KEY to it, "
            f"name it: --server {server.base}"
        )


def refuse_another(checkout: Checkout, server: Server, health: dict[str, Any]) -> None:
    """Raises Trouble if the server that answers has its data in none of our own directories."""
    if checkout.data_dir_of(health.get("instance")) is None:
        raise Trouble(
            f"The batch server at {server.base} is not your own: its data is not in {checkout.data_dirs[0]}. Nothing "
            f"was sent. To use it all the same, name it: --server {server.base}. To run your own beside it, give that "
            "another port: PORT=4090."
        )


def described(checkout: Checkout, server: Server, health: dict[str, Any]) -> str:
    """One sentence about the server: address, version, data directory if it is ours, model servers."""
    directory = checkout.data_dir_of(health.get("instance"))
    version = health.get("version")
    about = [f"version {version}" if version else "", f"data in {directory}" if directory else ""]
    backends = [
        f"{each.get('kind') or 'unknown'} {each.get('version') or ''}".strip() for each in health["backends"] or []
    ]
    about.append("model server: " + (", ".join(backends) or "none"))
    return f"Using the server at {server.base} ({'; '.join(filter(None, about))})."


@contextmanager
def started(checkout: Checkout, server: Server, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Start this checkout's server, give its health, and stop it at the end, whatever ends the command."""
    manage = [sys.executable, str(checkout.root / "manage.py")] if checkout.root else []
    choice = _choice(manage)
    for sentence in choice["told"]:
        tell(sentence)
    log = Path(choice["log"])
    tell(f"Starting a server for this run (log: {log})…")
    with log.open("ab") as output:
        process = subprocess.Popen(
            # It stops when this client dies, by SIGKILL too.
            [*manage, "serve", "--no-admin", "--parent", str(os.getpid())],
            env=os.environ | choice["environment"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in the terminal reaches us alone, and we stop the server in order.
            start_new_session=True,
        )
    before = [(number, signal.signal(number, _interrupt)) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        health = _wait_for(process, server, log)
        server.while_away = lambda: _refuse_dead(process, log)
        yield health
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _choice(manage: list[str]) -> dict[str, Any]:
    """What the server of this run is to be: its environment beside ours, its log, and what a person is told of it."""
    result = subprocess.run([*manage, "choose_backend"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Trouble(result.stderr.strip().removeprefix("CommandError: ") or "The server cannot be started.")
    choice: dict[str, Any] = json.loads(result.stdout)
    return choice


def _wait_for(process: "subprocess.Popen[bytes]", server: Server, log: Path) -> dict[str, Any]:
    ends_at = time.monotonic() + START_S
    while True:
        health = server.health()
        if health is not None and health["status"] != "failing" and health["backends"]:
            return health
        _refuse_dead(process, log)
        if time.monotonic() > ends_at:
            raise Trouble(f"The server did not start within {START_S:.0f} s. The end of {log}:\n{_tail(log)}")
        time.sleep(LOOK_EVERY_S)


def _refuse_dead(process: "subprocess.Popen[bytes]", log: Path) -> None:
    if process.poll() is not None:
        raise Trouble(f"The server ended. The end of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
