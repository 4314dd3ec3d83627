"""The version: the newest heading of CHANGELOG.md, and written nowhere else."""

import re
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"
UNRELEASED = "Unreleased"
# The file is beside the code in a checkout and in the image. A copy of the code without it runs too.
UNKNOWN = "0+unknown"


def read_version(changelog: Path = CHANGELOG) -> str:
    """The newest release, such as `0.1.0`; with `+unreleased` if changes after it are listed.

    `0+unknown` if the file is missing or has no release. Every answer is a version by PEP 440.
    """
    try:
        text = changelog.read_text(encoding="utf-8")
    except FileNotFoundError:
        return UNKNOWN
    headings: list[str] = re.findall(r"^## (\S+)", text, re.MULTILINE)
    releases = [heading for heading in headings if heading != UNRELEASED]
    if not releases:
        return UNKNOWN
    return releases[0] + ("+unreleased" if headings[0] == UNRELEASED else "")
