"""What every command has: the server that it talks to, and whether a person or a program reads what it prints."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import click

from client import own_server, rendering
from client.api import Server, as_json
from client.checkout import Checkout
from client.trouble import Trouble

LAST = "last"


@dataclass(frozen=True)
class Given:
    """What was given before the name of the command: `--server` and `--json` may stand there too."""

    address: str | None
    as_json: bool


@dataclass
class Session:
    """`address` is what `--server` names; None for the own server."""

    address: str | None
    as_json: bool
    checkout: Checkout = field(default_factory=Checkout.here)

    @property
    def command(self) -> str:
        return self.checkout.command

    def server(self, *, changes: bool = False) -> Server:
        """The server, which answers. Raises Trouble if it does not, or if `changes` are meant for another's server."""
        server, health = own_server.asked(self.checkout, self.address)
        if health is None:
            raise Trouble(
                f"No batch server answers at {server.base}. Start it: {self.checkout.server_command}. Or name one: "
                "--server URL."
            )
        if changes and self.address is None:
            own_server.refuse_another(self.checkout, server, health)
        return server

    def tell(self, text: str) -> None:
        """Say something to a person; it never gets between the JSON that a program reads."""
        click.echo(rendering.printable_lines(text), err=self.as_json)

    def show(self, body: Any) -> None:
        click.echo(as_json(body))

    def end(self, body: Any, *sentences: str) -> None:
        """What a command came to: the sentences for a person, or the body for a program."""
        if self.as_json:
            self.show(body)
            return
        for each in sentences:
            self.tell(each)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--server` and `--json`; it gets a Session as its first argument."""

    @click.option("--server", "address", envvar="OLLAMA_BATCH_SERVER", metavar="URL", help="Default: your own.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
    @wraps(command)
    def with_session(*, address: str | None, as_json: bool, **others: Any) -> None:
        before = click.get_current_context().find_object(Given) or Given(None, False)
        command(Session(before.address or address, before.as_json or as_json), **others)

    return with_session


WINDOW_HELP = "Completion window, such as 36h or 7d; up to 30d."


def window_text(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The window as the server reads it. Raises BadParameter for what it would refuse after the upload."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}[mhd]", value):
        raise click.BadParameter(f"{value!r}: expected a number of minutes, hours or days, such as 90m, 36h or 7d.")
    return value


def batch_id(server: Server, named: str) -> str:
    """The id that a person named, or that of the newest batch for `last`. Raises Trouble for what is no id."""
    if named == LAST:
        newest = next(server.objects("batches", most=1), None)
        if newest is None:
            raise Trouble(f"There is no batch at {server.base} yet.")
        return str(newest["id"])
    if not re.fullmatch(r"batch[A-Za-z0-9_-]*", named):
        raise Trouble(f"{named!r} is no id of a batch. Expected one such as batch_abc123, or `last` for the newest.")
    return named
