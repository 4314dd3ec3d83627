"""Write docs/benchmarks.md: the figures with the machine, the versions and the command."""

import os
import platform
import re
import sqlite3
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from django.conf import settings

from benchmarks import figures

PATH = "docs/benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python manage.py benchmark --write`. Only figures of one table can be compared with each other: they come
from one run on one machine. The sections behind `money` are written by hand. The figures show the tables below them.
"""


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = platform.processor() or platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        processor = found[1]
    return f"Machine: {processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB; {platform.system()} {kernel}."


def versions() -> str:
    names = ["Django", "celery", "requests", "gunicorn"]
    listed = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Versions: Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {listed}."


def write(name: str, text: str, order: Iterable[str]) -> None:
    """Replace the section of this scenario in the report; the other sections stay as they were measured.

    Those that are no scenario's were written by hand and stay last.
    """
    texts = _sections()
    texts[name] = _illustrated(name, f"{text}\n{machine()}\n{versions()}")
    _store(texts, order)


def redraw(order: Iterable[str]) -> None:
    """Draw the figures of all sections anew, from the tables that are there."""
    _store({name: _illustrated(name, text) for name, text in _sections().items()}, order)


def _path() -> Path:
    return Path(settings.BASE_DIR / PATH)


def _sections() -> dict[str, str]:
    """The texts of the report by their headings."""
    text = _path().read_text() if _path().exists() else ""
    return dict(re.findall(r"^## (\S+)\n+(.*?)\n*(?=^## |\Z)", text, re.M | re.S))


def _illustrated(name: str, text: str) -> str:
    """The text of a section below its figures, in place of those that it had."""
    plain = re.sub(r"\A(?:!\[[^\n]*\n+)+", "", text)
    return "\n\n".join([*figures.draw(name, plain, _path().parent), plain])


def _store(texts: dict[str, str], order: Iterable[str]) -> None:
    names = [each for each in order if each in texts]
    sections = [f"## {each}\n\n{texts[each]}\n" for each in dict.fromkeys([*names, *texts])]
    _path().parent.mkdir(exist_ok=True)
    _path().write_text("\n".join([INTRODUCTION, *sections]))
