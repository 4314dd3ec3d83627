"""What the command line ends with when something is wrong: a sentence for a person and an exit status."""

import click

from client import rendering


class Trouble(click.ClickException):
    """Printed as `Error: …`; the exit status is 1."""

    def format_message(self) -> str:
        # Much of it is what a server says, or what a file has.
        return rendering.printable_lines(self.message)


class Refused(Trouble):
    """The server answered with an error. `status` is that of HTTP, `code` what the error's envelope has, if any."""

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Away(Trouble):
    """The server does not answer."""


class Interrupted(Trouble):
    """Ctrl-C; the exit status is what shells give for it."""

    exit_code = 130
