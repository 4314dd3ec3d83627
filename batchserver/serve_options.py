"""The options of `serve` that are settings too. Settings read the environment when they are imported, which is before a
management command reads its options, so these are put into the environment first."""

import argparse
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from batchserver import installation
from batchserver.version import VERSION

NAMES = {"host": "HOST", "port": "PORT", "data_dir": "DATA_DIR"}
WEB, CONTROL, INFERENCE = "web", "control", "inference"
PARTS = (WEB, CONTROL, INFERENCE)
DESCRIPTION = "Run web, workers and broker (and the embedded backend, if configured) until Ctrl-C; restart what dies."
EXAMPLES = """examples:
  script/server                                  this machine alone, http://127.0.0.1:4080
  script/server --port 8080 --data-dir ~/batches
  script/server --host 0.0.0.0                   the network too, which needs an API key:
  .venv/bin/python manage.py create_api_key NAME
  script/server --only inference                 a machine with a GPU that joins a server (docs/second-machine.md)

The first start prints the administrator's password for /admin/ once. Clients use http://127.0.0.1:4080/v1 as base_url.
The model server is Ollama at http://localhost:11434 unless OLLAMA_BASE_URL or BACKEND_URL names another. Settings are
read from the environment and from .env; .env.example lists them all. Options win over both.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", metavar="ADDRESS", help="where to listen (HOST): 127.0.0.1 is this machine, 0.0.0.0 the network too"
    )
    parser.add_argument("--port", type=_port, metavar="NUMBER", help="TCP port to listen at (PORT), 4080 unless set")
    parser.add_argument("--data-dir", type=_directory, metavar="PATH", help="where all state is kept (DATA_DIR)")
    parser.add_argument(
        "--only",
        type=_parts,
        action="extend",
        metavar="PART",
        help="run these parts of the server alone: web, control, inference; several are separated by commas",
    )
    parser.add_argument("--no-admin", action="store_true", help="make no administrator; the next `serve` does")
    parser.add_argument("--parent", type=int, metavar="PID", help="stop when this process, which started it, ends")


def apply(arguments: Sequence[str], environment: MutableMapping[str, str], *, program: str) -> None:
    """Put the options that are given into the environment. A value that cannot be used ends the process with status 2,
    `--help` and `--version` with 0; what is no option of these is left to the command's own parser. `program` is what
    usage says.

    The command's own parser has those two from Django; but it reads the settings first, one of which may be wrong, and
    tells Django's version. Nothing that has to be installed is imported here.
    """
    parser = argparse.ArgumentParser(
        program, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--version", action="version", version=f"{installation.NAME} {VERSION}")
    given, _ = parser.parse_known_args(arguments)
    environment.update({NAMES[name]: str(value) for name, value in vars(given).items() if name in NAMES and value})


def chosen_parts(given: Sequence[str] | None) -> tuple[str, ...]:
    """The parts of the server that run here, in the order in which they start: those of `--only`, or all."""
    return tuple(part for part in PARTS if not given or part in given)


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r}: expected {', '.join(PARTS)}, or several with commas between")
    return parts


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
