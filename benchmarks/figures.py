"""Pictures of the tables in docs/benchmarks.md, drawn from the text of the page: what stands there is what is drawn."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = "images"
Row = Mapping[str, str]


class NoLibrary(Exception):
    """The library that draws is not installed. The text says how to get it."""


@dataclass(frozen=True)
class Figure:
    """Of a table with these columns. `names` make the name of a group of bars; `bars` are their legends and columns."""

    title: str
    names: Sequence[str]
    bars: Mapping[str, str]
    is_logarithmic: bool = False

    @property
    def columns(self) -> set[str]:
        return {*self.names, *self.bars.values()}


def _lines_a_second(in_flight: str) -> Figure:
    clients = {"bare: requests": "requests lines/s", "bare: aiohttp": "aiohttp lines/s", "batch": "batch lines/s"}
    limit = {"limit: sockets alone": "sockets lines/s"}
    title = f"Lines a second by calls {in_flight} an answer"
    return Figure(title, [in_flight], clients | limit, is_logarithmic=True)


# Of the scenarios in which the batch is measured against something: ours, the bare loop, and the limit.
FIGURES: dict[str, list[Figure]] = {
    "overhead": [
        Figure(
            "Milliseconds in which the slot is idle between two calls (limit: 0), by the milliseconds of an answer",
            ["latency ms"],
            {"bare loop": "bare gap ms", "batch": "batch gap ms"},
        )
    ],
    "throughput": [_lines_a_second("in flight, 2 ms"), _lines_a_second("in flight, 20 ms")],
    "prefixes": [
        Figure(
            "Seconds for 40 chats with 8 long system prompts in turn, by slots and MiB of the cache of prompts",
            ["slots", "RAM cache"],
            {"bare: order of the file": "file order s", "bare: sorted": "sorted s", "batch": "batch s"},
        )
    ],
    "models": [
        Figure(
            "Seconds for lines that name three models in turn",
            ["model server"],
            {"bare loop": "bare s", "batch": "batch s"},
        )
    ],
    "money": [Figure("Output tokens a second on the embedded model", ["by"], {"a client": "output tokens/s"})],
}


def library() -> Any:
    """The library that draws. Raises NoLibrary: ask before anything is measured for an hour."""
    try:
        import pygal
        import pygal.style
    except ModuleNotFoundError:
        raise NoLibrary(
            "The figures are drawn by pygal, which is not installed: pip install -r requirements-dev.txt"
        ) from None
    # It looks for plugins of its own at every import from then on, in a way of which Python 3.11 warns.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]
    return pygal


def draw(name: str, text: str, pages: Path) -> list[str]:
    """Draw what a section of the page shows, into `images` beside it; the lines of Markdown that embed the pictures.

    Safe to repeat: the same table gives the same bytes.
    """
    found: list[str] = []
    for figure in FIGURES.get(name, []):
        for rows in _tables(text):
            if rows and figure.columns <= set(rows[0]):
                number = f"-{len(found) + 1}" if found else ""
                path = pages / DIRECTORY / f"benchmark-{name}{number}.svg"
                path.parent.mkdir(parents=True, exist_ok=True)
                _draw(figure, rows, path)
                found.append(f"![{figure.title}]({DIRECTORY}/{path.name})")
                break  # a second table of this kind is of another version
    return found


def _tables(text: str) -> Iterator[list[Row]]:
    """The tables in the fenced blocks: under a line of dashes each cell ends where its dashes do."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if number and re.fullmatch(r"-+(  -+)*", line):
            spans = [match.span() for match in re.finditer(r"-+", line)]
            rows = []
            for row in lines[number - 1 : number] + lines[number + 1 :]:
                if not row.strip() or row.startswith("```"):
                    break
                rows.append([row[start:end].strip() for start, end in spans])
            yield [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _draw(figure: Figure, rows: Sequence[Row], path: Path) -> None:
    pygal = library()
    style = pygal.style.Style(
        background="white",
        plot_background="white",
        opacity="1",
        guide_stroke_color="#dddddd",
        major_guide_stroke_color="#dddddd",
        font_family="sans-serif",
        title_font_size=15,
        label_font_size=13,
        legend_font_size=14,
        value_font_size=11,
        colors=("#9aa5b1", "#c8b28a", "#1f7a8c", "#e3e3e3") if len(figure.bars) > 2 else ("#9aa5b1", "#1f7a8c"),
    )
    values = {legend: [_number(row[column]) for row in rows] for legend, column in figure.bars.items()}
    guides = _guides([value for each in values.values() for value in each if value]) if figure.is_logarithmic else None
    chart = pygal.Bar(
        style=style,
        js=(),
        no_prefix=True,
        width=860,
        height=380,
        title=figure.title,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(figure.bars),
        truncate_legend=-1,
        print_values=len(rows) * len(figure.bars) <= 16,
        print_values_position="top",
        logarithmic=figure.is_logarithmic,
        y_labels=guides,
        range=guides and (guides[0], guides[-1]),
        zero=guides[0] if guides else 0,  # where the bars begin
        value_formatter=lambda value: f"{value:,.2f}" if 0 < value < 10 else f"{value:,.0f}",
    )
    chart.x_labels = [" / ".join(row[name] for name in figure.names) for row in rows]
    for legend, each in values.items():
        chart.add(legend, each)
    # Without a program for tooltips, and without the date.
    path.write_text(re.sub(r"<script.*?</script>|<!--.*?-->", "", chart.render(is_unicode=True), flags=re.DOTALL))


def _guides(values: Sequence[float]) -> list[int]:
    """1, 2, 5, 10 and so on, from below the least value to above the largest, which are above 1."""
    steps = [factor * 10**power for power in range(9) for factor in (1, 2, 5)]
    first = max(number for number, step in enumerate(steps) if step <= min(values))
    last = min(number for number, step in enumerate(steps) if step >= max(values))
    return steps[first : last + 1]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None  # not measured
