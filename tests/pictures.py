"""Draw docs/images/command-line.svg: what commands print in a terminal, beside a server with the embedded model.

    .venv/bin/python -m tests.pictures

The output is real; of a bar that moved its last state is shown.
"""

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.stack import ROOT, Stack

COLUMNS = 124
TYPED = (
    "script/batch check requests.jsonl",
    "script/batch run requests.jsonl",
    "script/batch show",
    "script/batch list",
)


def printed(command: str, directory: Path, environment: dict[str, str]) -> str:
    """What the command wrote to its terminal, at its end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "client", *command.split()[1:]],
        cwd=directory,
        env=os.environ | environment | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        said += part
    os.close(ours)
    process.wait()
    lines = said.decode().replace("\r\n", "\n").split("\n")
    # A line that was written again, and whether the cursor is shown.
    return re.sub(r"\x1b\[\?25[lh]", "", "\n".join(re.split(r"\r(?:\x1b\[2K)?", line)[-1] for line in lines))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copy(ROOT / "examples" / "requests.jsonl", directory)
        server = Stack(directory / "data", {"BACKEND_URL": "embedded", "XDG_STATE_HOME": str(directory / "state")})
        server.start()
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        try:
            for command in TYPED:
                console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
                said = printed(command, directory, server.environment)
                # The machine's own names have no place in a picture.
                said = said.replace(str(server.data_dir), "data").replace(server.base, "http://127.0.0.1:4080")
                console.print(Text.from_ansi(said))
        finally:
            server.stop()
        target = ROOT / "docs" / "images" / "command-line.svg"
        target.parent.mkdir(exist_ok=True)
        drawn = console.export_svg(title="script/batch", unique_id="command-line")
        # Nothing is fetched by who looks at it: the reader's own font of fixed width is used.
        target.write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
