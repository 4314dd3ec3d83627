"""The rules of how modules may import each other and who may write what, as functions of the parsed tree.

Each rule gives its violations as lines for a person; none: it holds. Nothing is imported and no module listed by hand.
tests/repository/test_import_direction.py says which rules are in force, and tries each on planted faults.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`name` in full, with the member that is taken: `a.b.member` for `from a.b import member`."""

    module: str
    name: str
    line: int


@dataclass
class Tree:
    """The modules of some packages by their dotted names."""

    sources: dict[str, ast.Module]

    @classmethod
    def of(cls, sources: Mapping[str, str]) -> "Tree":
        return cls({module: ast.parse(text) for module, text in sources.items()})

    @classmethod
    def read(cls, root: Path, *, but: Collection[str] = ()) -> "Tree":
        """All Python files below `root` that stand in no directory named in `but`, nor in a hidden one."""
        sources = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] not in but and not any(part.startswith(".") for part in parts):
                sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
        return cls(sources)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of every module, those inside functions and under TYPE_CHECKING too."""
        return [found for module, tree in self.sources.items() for found in _imports(module, tree)]

    def known(self, name: str) -> str | None:
        """The module of ours that an imported name is or belongs to; None for others' modules."""
        while name and name not in self.sources:
            name = name.rpartition(".")[0]
        return name or None

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """Which of our modules imports which."""
        arrows: dict[str, set[str]] = {module: set() for module in self.sources}
        for found in self.imports:
            target = self.known(found.name)
            if target is not None and target != found.module:
                arrows[found.module].add(target)
        return arrows

    def within(self, room: str) -> list[str]:
        """The modules of a room: a module, or a package with all below it."""
        return [module for module in self.sources if _is_in(module, room)]


def _imports(module: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from batches import leases` names a module, `from batches.leases import reap` a member of one.
            yield from (Import(module, f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "import_string"):
            names = (each.value for each in node.args[:1] if isinstance(each, ast.Constant))
            yield from (Import(module, name, node.lineno) for name in names if isinstance(name, str))


def _is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def _room_of(name: str, rooms: Iterable[str]) -> str | None:
    """The longest of the rooms that it is in."""
    return max((room for room in rooms if _is_in(name, room)), key=len, default=None)


# Imports


def arrows_up(tree: Tree, storeys: Sequence[Collection[str]], *, inside: str = "") -> list[str]:
    """Imports of what stands above. Storeys are named from the top, each by its rooms; modules of one may import each
    other. A module that is in none of them is a violation too: nobody said where it belongs. `inside`: of one package.
    """
    level = {room: number for number, rooms in enumerate(storeys) for room in rooms}
    wrong = []
    for module, targets in tree.arrows.items():
        if inside and (not _is_in(module, inside) or module == inside):
            continue
        room = _room_of(module, level)
        if room is None:
            wrong.append(f"{module} is on no storey: say where it belongs")
            continue
        for target in sorted(targets):
            above = _room_of(target, level)
            if above is not None and level[above] < level[room]:
                wrong.append(f"{module} imports {target}, which is above it")
    return wrong


def circles(tree: Tree) -> list[str]:
    """Modules that import each other, in however many steps: one shortest way round for each knot."""
    wrong, seen = [], set()
    for module in sorted(tree.arrows):
        way = _way(tree.arrows, module, module)
        if way and not seen & set(way):
            wrong.append(" > ".join(way))
        seen |= set(way)
    return wrong


def _way(arrows: Mapping[str, Collection[str]], start: str, end: str) -> list[str]:
    """The shortest way of at least one step, both ends named; empty if there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in sorted(arrows[way[-1]]):
            if target == end:
                return [*way, target]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def neighbours(tree: Tree, rooms: Sequence[str]) -> list[str]:
    """Imports of one of these rooms by another."""
    return [
        f"{module} imports {target}, which stands beside it"
        for module, targets in tree.arrows.items()
        for target in sorted(targets)
        if (own := _room_of(module, rooms)) and (other := _room_of(target, rooms)) and own != other
    ]


def reaching(tree: Tree, room: str, *, forbidden: Sequence[str]) -> list[str]:
    """Ways on which a module of the room comes to a forbidden one, others' or ours, itself or by what it imports."""
    foreign: dict[str, set[str]] = {}
    for found in tree.imports:
        if _room_of(found.name, forbidden):
            foreign.setdefault(found.module, set()).add(_room_of(found.name, forbidden) or "")
    wrong = [] if tree.within(room) else [f"there is no {room}"]
    for module in tree.within(room):
        for end in foreign:
            way = [module] if end == module else _way(tree.arrows, module, end)
            if way:
                wrong.append(" > ".join([*way, *sorted(foreign[end])]))
    return wrong


def outside(tree: Tree, libraries: Sequence[str], *, homes: Collection[str]) -> list[str]:
    """Imports of these libraries by modules that are in none of the `homes`."""
    return [
        f"{found.module} line {found.line} imports {found.name}"
        for found in tree.imports
        if _room_of(found.name, libraries) and not _room_of(found.module, homes)
    ]


def importers(tree: Tree, room: str, *, but: Collection[str] = ()) -> list[str]:
    """Who imports something of this room from outside of it; the rooms in `but` may."""
    return [
        f"{module} imports {target}"
        for module, targets in tree.arrows.items()
        for target in sorted(targets)
        if _is_in(target, room) and not _is_in(module, room) and not _room_of(module, but)
    ]


# Who reads the clock of its host

CLOCKS = {
    "timezone.now",
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}


def host_clocks(tree: Tree, rooms: Collection[str], *, homes: Collection[str]) -> list[str]:
    """Where modules of these rooms read the clock of their host, but for the `homes` and for migrations."""
    return [
        f"{module} line {line} reads the clock of its host"
        for module, source in tree.sources.items()
        if _room_of(module, rooms) and module not in homes and "migrations" not in module.split(".")
        for line in sorted(_clock_reads(source) | {each.line for each in tree.imports if _imports_clock(each, module)})
    ]


def _clock_reads(tree: ast.Module) -> set[int]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.lineno for node in found if ".".join(ast.unparse(node).split(".")[-2:]) in CLOCKS}


def _imports_clock(found: Import, module: str) -> bool:
    """As `from time import time` does."""
    return found.module == module and ".".join(found.name.split(".")[-2:]) in CLOCKS


# Who writes a batch's status

# Called with `status=`, with `**{"status": …}` or with fields named "status", each of these writes it. So does a Batch
# that is made with one. What only asks (`filter`, `exclude`, `get`, Q) or answers (`status=404`) does not.
BY_KEYWORD = {
    *("update", "aupdate", "create", "acreate", "get_or_create", "aget_or_create"),
    *("update_or_create", "aupdate_or_create", "Batch"),
}
BY_FIELDS = {"bulk_update", "abulk_update", "bulk_create", "abulk_create", "save", "asave", "insert"}
DEFAULTS = ("defaults", "create_defaults")


def status_writers(tree: Tree, *, writer: str, models: str) -> list[str]:
    """Where a status is written, but by `writer`. `self.status = …` is a class's own affair, except within `models`."""
    return [
        f"{module} line {line}"
        for module, source in tree.sources.items()
        if module != writer and "migrations" not in module.split(".")
        for line in sorted(status_writes(source, self_is_a_row=_is_in(module, models)))
    ]


def status_writes(tree: ast.Module, *, self_is_a_row: bool = False) -> set[int]:
    """The lines on which a `status` is written."""
    unpacked = _dicts_with_status(tree)
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and node.attr == "status":
            if self_is_a_row or ast.unparse(node.value) != "self":
                lines.add(node.lineno)
        elif isinstance(node, ast.Call) and _writes_status(node, unpacked):
            lines.add(node.lineno)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _names(node.slice, set()):
            if ast.unparse(node.value).endswith(".__dict__") or ast.unparse(node.value).startswith("vars("):
                lines.add(node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.lower().replace('"', " ").split()
            if words[:2] == ["update", "batches_batch"] and "status" in " ".join(words).partition(" where ")[0]:
                lines.add(node.lineno)
    return lines


def _writes_status(call: ast.Call, unpacked: set[str]) -> bool:
    called = _called(call)
    if called in ("setattr", "__setattr__"):
        return any(isinstance(each, ast.Constant) and each.value == "status" for each in call.args)
    if any(keyword.arg in DEFAULTS and _names(keyword.value, unpacked) for keyword in call.keywords):
        return True
    if called in BY_KEYWORD:
        return any(
            keyword.arg == "status" or (keyword.arg is None and _names(keyword.value, unpacked))
            for keyword in call.keywords
        )
    if called in BY_FIELDS:
        return any(_names(each, unpacked) for each in [*call.args, *(keyword.value for keyword in call.keywords)])
    return False


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _names(node: ast.expr, unpacked: set[str]) -> bool:
    """It is "status", or a collection (or a variable that holds one) with "status" in it."""
    match node:
        case ast.Constant(value="status"):
            return True
        case ast.Dict(keys=keys, values=values):
            # Of `{**other}` the key is None and the value is `other`.
            return any(
                _names(value, unpacked) if key is None else _names(key, unpacked)
                for key, value in zip(keys, values, strict=True)
            )
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return any(_names(item, unpacked) for item in items)
        case ast.BinOp(left=left, right=right):
            return _names(left, unpacked) or _names(right, unpacked)
        case ast.Call(keywords=keywords) if _called(node) == "dict":
            return any(keyword.arg == "status" for keyword in keywords)
        case ast.Name(id=name):
            return name in unpacked
    return False


def _dicts_with_status(tree: ast.Module) -> set[str]:
    """The variables that somewhere get a collection with "status" in it, or that key."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and node.value is not None and _is_collection(node.value):
                    if _names(node.value, set()):
                        names.add(target.id)
                elif isinstance(target, ast.Subscript) and _names(target.slice, set()):
                    names.add(ast.unparse(target.value))
    return names


def _is_collection(node: ast.expr) -> bool:
    return not isinstance(node, ast.Constant | ast.Name)


# Whose rows


MANAGERS = ("objects", "_default_manager", "_base_manager")


def unscoped(tree: Tree, views: Collection[str]) -> list[str]:
    """Where views take rows of everybody: by a model's manager that is no argument of `rows`, but to create a
    row; or a model that is given to get_object_or_404 and the like."""
    return [
        f"{module} line {line}"
        for module, source in tree.sources.items()
        if any(_is_in(module, room) for room in views)
        for line in sorted(_managers_outside_of_rows(source))
    ]


def _managers_outside_of_rows(tree: ast.Module) -> set[int]:
    fine: set[ast.AST] = set()
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if _called(node) == "rows":
                fine |= {inside for argument in node.args for inside in ast.walk(argument)}
            elif _called(node) == "create" and isinstance(node.func, ast.Attribute):
                fine.add(node.func.value)
            elif _called(node) in ("get_object_or_404", "get_list_or_404"):
                found[node] = node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in MANAGERS:
            found[node] = node.lineno
    return {line for node, line in found.items() if node not in fine}
