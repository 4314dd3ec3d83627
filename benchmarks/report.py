"""Write docs/benchmarks.md: the figures with the machine, the versions and the command."""

import os
import platform
import re
import sqlite3
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from django.conf import settings

PATH = "docs/benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python manage.py benchmark --write`. Only figures of one table can be compared with each other: they come
from one run on one machine. The sections behind `money` are written by hand.
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
    path = settings.BASE_DIR / PATH
    texts = dict(re.findall(r"^## (\S+)\n+(.*?)\n*(?=^## |\Z)", path.read_text() if path.exists() else "", re.M | re.S))
    texts[name] = f"{text}\n{machine()}\n{versions()}"
    names = [each for each in order if each in texts]
    sections = [f"## {each}\n\n{texts[each]}\n" for each in dict.fromkeys([*names, *texts])]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([INTRODUCTION, *sections]))
