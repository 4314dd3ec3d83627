"""How the server is called from a shell: `manage.py`, and `ollama-batch-server` where it is installed as a package."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from batchserver import serve_options


def manage(arguments: Sequence[str]) -> int:
    """Run the management command that is named; the exit status. A wrong setting is told without a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")
    if arguments[1:2] == ["serve"]:
        serve_options.apply(arguments[2:], os.environ, program=f"{Path(arguments[0]).name} serve")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(list(arguments))
    except ImproperlyConfigured as error:
        sys.stderr.write(f"Configuration: {error}\n")
        return 2
    return 0


def main() -> int:
    """`ollama-batch-server` with options is `serve`, and with the name of another management command it is that."""
    program, *given = sys.argv
    if not given or given[0].startswith("-"):
        given.insert(0, "serve")
    try:
        import django  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write(
            "The server is not installed, only its command line. In the checkout: pip install '.[server]'\n"
        )
        return 1
    return manage([program, *given])
