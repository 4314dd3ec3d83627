"""The options of `serve` that are settings too. Settings read the environment when they are imported, which is before a
management command reads its options, so these are put into the environment first."""

import argparse
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from batchserver import installation
from batchserver.version import VERSION

NAMES = {"host": "HOST", "port": "PORT", "data_dir": "DATA_DIR"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="ADDRESS", help="where to listen (HOST): 127.0.0.1 is this machine, 0.0.0.0 the network too"
    )
    parser.add_argument("--port", type=_port, metavar="NUMBER", help="TCP port to listen at (PORT), 4080 unless set")
    parser.add_argument("--data-dir", type=_directory, metavar="PATH", help="where all state is kept (DATA_DIR)")


def apply(arguments: Sequence[str], environment: MutableMapping[str, str], *, program: str) -> None:
    """Put the options that are given into the environment. A value that cannot be used ends the process with status 2,
    `--version` with 0; what is no option of these is left to the command's own parser. `program` is what usage says."""
    parser = argparse.ArgumentParser(program, add_help=False)
    add_arguments(parser)
    # The command's own parser has it too, from Django; but it reads the settings first, and tells Django's version.
    parser.add_argument("--version", action="version", version=f"{installation.NAME} {VERSION}")
    given, _ = parser.parse_known_args(arguments)
    environment.update({NAMES[name]: str(value) for name, value in vars(given).items() if value is not None})


def _port(text: str) -> int:
    # int takes the digits of all scripts.
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 65535")
    return int(text)


def _directory(text: str) -> Path:
    """From where the command was typed. In the environment a relative path would start at the checkout."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected the path of a directory")
    return Path(text).expanduser().absolute()
