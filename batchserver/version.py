"""The version: the newest heading of CHANGELOG.md, and written nowhere else."""

import re
from importlib import metadata
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"
UNRELEASED = "Unreleased"
DISTRIBUTION = "ollama-batch-server"
# The file is beside the code in a checkout and in the image, and a wheel was named by it. A copy of the code without
# either runs too.
UNKNOWN = "0+unknown"


def read_version(changelog: Path = CHANGELOG) -> str:
    """The newest release, such as `0.1.0`; with `+unreleased` if changes after it are listed.

    Without the file it is that of the installed package. `0+unknown` if that is not there either, or if the file has no
    release. Every answer is a version by PEP 440.
    """
    try:
        text = changelog.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _installed()
    headings: list[str] = re.findall(r"^## (\S+)", text, re.MULTILINE)
    releases = [heading for heading in headings if heading != UNRELEASED]
    if not releases:
        return UNKNOWN
    return releases[0] + ("+unreleased" if headings[0] == UNRELEASED else "")


def _installed() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNKNOWN


VERSION = read_version()  # where the build of a wheel looks for it (pyproject.toml)
