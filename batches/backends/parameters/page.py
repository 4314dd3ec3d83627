"""docs/parameters.md, made from the tables."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping

from batches.backends.parameters import ollama, others, vllm
from batches.backends.parameters.table import (
    READ,
    Dropped,
    Each,
    Entry,
    Kinds,
    Like,
    Moved,
    Object,
    Table,
    Unread,
    Values,
    Weight,
)

KINDS: Mapping[str, Mapping[str, Table]] = {
    "Ollama": ollama.TABLES,
    "vLLM": vllm.TABLES,
    "llama-server": others.LLAMA_SERVER,
    "The embedded model": others.EMBEDDED,
    "Other servers": others.UNKNOWN,
}
TOP = """# What becomes of each member of a request

Made from the tables in `batches/backends/parameters/` by `python -m batches.backends.parameters`; a test compares.
A part of a list is written `messages[]`. Members that are null are left out, and so are members
without an entry that are empty: `[]`, `{}` or `""`.

| | what becomes of it |
| --- | --- |
| read | sent as it is |
| → | translated: sent under the name that the server reads |
| left out | not sent, since no answer can differ |
| told | a hint that the server does not take: sent, and named in the batch's warnings |
| refused | an error line with the code `unsupported_parameter` and the member as `param` |

With `STRICT_PARAMETERS=False` what would be refused is sent, and named in the batch's warnings. In a chat that is
passed through it is sent too, and named in the header `x-ignored-parameters`. Never sent are addresses of images,
files, videos and sounds that are no `data:` URLs, and tools that a server would run (`mcp`, `web_search`, …; every type
but `function`, `custom` and `namespace`).
"""
Row = tuple[str, str, str]  # what becomes of it, the member, more about it


def page() -> str:
    return TOP + "".join(_kind(title, tables) for title, tables in KINDS.items())


def _kind(title: str, tables: Mapping[str, Table]) -> str:
    return f"\n## {title}\n" + "".join(_endpoint(table) for table in tables.values())


def _endpoint(table: Table) -> str:
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for fate, member, more in _rows("", table.request):
        found[fate].setdefault(member, more)
    others_are = "read" if table.request.unknown is READ else "refused"
    lines = [f"\n### {title_of(table)}\n", f"From {table.source}. Members that are not named here are {others_are}.\n"]
    for fate in ("read", "left out"):
        if members := found[fate]:
            each = ", ".join(f"`{name}`{f' ({more})' if more else ''}" for name, more in members.items())
            lines.append(f"{fate.capitalize()}: {each}.\n")
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for fate, arrow in (("translated", "→ "), ("told", "told: "), ("refused", "refused: ")):
        for name, more in found[fate].items():
            rows[arrow + more if more else fate].append(f"`{name}`")
    if rows:
        lines += ["| member | what becomes of it |", "| --- | --- |"]
        lines += [f"| {', '.join(names)} | {fate} |" for fate, names in rows.items()]
        lines.append("")
    return "\n".join(lines)


def title_of(table: Table) -> str:
    return f"{table.title}: {table.endpoint}"


def _rows(name: str, entry: Entry) -> Iterator[Row]:
    match entry:
        case Moved():
            yield "translated", name, entry.says
        case Dropped():
            values = " or ".join(json.dumps(value) for value in entry.values)
            yield "left out", name, values and f"if {values}"
            if entry.values:
                yield _fate(entry.weight), name, f"other values. {entry.hint}".strip()
        case Unread():
            yield _fate(entry.weight), name, entry.hint
        case Values():
            yield "read", name, " or ".join(f"`{value}`" for value in entry.values)
            if entry.renamed:
                yield "translated", name, ", ".join(f"`{old}`: `{new}`" for old, new in entry.renamed.items())
        case Like():
            yield "read", name, entry.says
        case Each():
            yield "read", name, ""
            yield from _rows(f"{name}[]", entry.entry)
        case Kinds():
            kinds = [kind for kind in entry.kinds if kind is not None]
            yield "read", f"{name}.{entry.by}", " or ".join(f"`{kind}`" for kind in kinds)
            for each in entry.kinds.values():
                yield from _rows(name, each)
        case Object():
            if name and not name.endswith("[]"):
                yield "read", name, ""
            for member, inner in entry.members.items():
                yield from _rows(f"{name}.{member}" if name else member, inner)
        case _:
            yield "read", name, entry.says


def _fate(weight: Weight) -> str:
    return "told" if weight is Weight.TOLD else "refused"
