"""What a person reads: tables, times, counts."""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import click

WORTH_TELLING_S = 60.0  # a forecast of less is over before it is read


def is_terminal() -> bool:
    return sys.stdout.isatty()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their heads, each cell whole. In a terminal the columns that fit stand side by side, and what
    the others have stands below each row. Elsewhere all are side by side, so that a pipe can read them."""
    cells = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    beside = _fitting(widths) if is_terminal() else len(heads)
    for number, row in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(row[:beside], widths, strict=False))
        line = "  ".join(padded).rstrip()
        click.echo(line if number or not is_terminal() else click.style(line, bold=True))
        rest = zip(heads[beside:], row[beside:], strict=True)
        if number and (told := ", ".join(f"{head}: {cell}" for head, cell in rest if cell)):
            click.echo(f"    {told}")


def _fitting(widths: Sequence[int]) -> int:
    """How many of the columns, one at least, the terminal is wide enough for."""
    ends = list(accumulate(widths, lambda end, width: end + 2 + width))
    return max(1, sum(end <= shutil.get_terminal_size().columns for end in ends))


def printable(text: str) -> str:
    """On one line and without what would steer a terminal: names and messages come from others."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def printable_lines(text: str) -> str:
    """As `printable`, with the ends of lines as they are."""
    return "\n".join(printable(line) for line in text.split("\n"))


def lines(count: int) -> str:
    """`1 line`, `1,200 lines`."""
    return f"{count:,} line{'' if count == 1 else 's'}"


def clock(seconds: float | None) -> str:
    """A Unix time as this machine's own clock has it, with the day unless it is today."""
    if seconds is None:
        return ""
    at = datetime.fromtimestamp(seconds, UTC).astimezone()
    return at.strftime("%H:%M" if at.date() == datetime.now(UTC).astimezone().date() else "%a %d %b %H:%M")


def duration(seconds: float) -> str:
    """`2 d 5 h`, `3 h 20 min`, `4 min 5 s`, `7 s`."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def counts(progress: dict[str, Any]) -> str:
    """How many lines are done; empty before the input file is read."""
    told = progress["request_counts"]
    done = told["completed"] + told["failed"]
    return f"{done:,}/{told['total']:,} lines, {told['failed']:,} failed" if told["total"] else ""


def speed(progress: dict[str, Any]) -> str:
    """Speed and end as the server measured and reckoned them; empty if it does not know."""
    told = []
    if progress.get("tokens_per_second"):
        told.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if progress.get("lines_per_minute"):
        told.append(f"{progress['lines_per_minute']:,.1f} lines/min")
    if progress.get("estimated_end"):
        left = duration(progress["estimated_end"] - time.time())
        told.append(f"ends about {clock(progress['estimated_end'])} (in {left})")
    return ", ".join(told)


def size(count: int) -> str:
    """`512 MB`, `1.5 GB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"


def disk(progress: dict[str, Any]) -> str:
    """What the rest of a batch takes on the server's disk; empty if nobody knows, or if nothing is left to write."""
    needed, free = progress.get("disk_needed_bytes"), progress.get("disk_free_bytes")
    return f"about {size(needed)} of disk, where {size(free)} are free" if needed and free is not None else ""


def forecast(progress: dict[str, Any]) -> str:
    """When it ends and whether its window suffices, what it takes on the disk, and what that is based on; empty if the
    server cannot tell yet, or if the end is a moment away."""
    end, window = progress.get("estimated_end"), progress.get("expires_at")
    if end is None or end - time.time() < WORTH_TELLING_S:
        return ""
    told = [f"ends about {clock(end)} (in {duration(end - time.time())})"]
    if window is not None:
        told.append(f"its window ends {clock(window)}{'' if end <= window else ', WHICH IS TOO EARLY'}")
    if room := disk(progress):
        told.append(f"takes {room}")
    return f"Forecast: {'; '.join(told)}. {progress['estimated_from'] or ''}".strip()


def short(text: str, width: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
