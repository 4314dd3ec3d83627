"""Rows to requests, and answers back to columns."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.table import Table
from client.trouble import Trouble

if TYPE_CHECKING:
    from jinja2 import Template

ENDPOINT = "/v1/chat/completions"
# Beside the columns of the answer, unless the names are taken.
ERROR, FINISH_REASON = "error", "finish_reason"


@dataclass
class Recipe:
    """How a row becomes a request: the prompts are templates over the columns. Counts what it leaves out."""

    table: Table
    prompt: "Template"
    system: "Template | None" = None
    where: Any = None  # a compiled expression over the columns
    id_column: str | None = None
    schema: dict[str, Any] | None = None
    model: str | None = None
    skipped: int = 0  # rows with an empty prompt
    seen: dict[str, int] = field(default_factory=dict)

    def requests(self, limit: int | None = None) -> Iterator[tuple[str, bytes]]:
        """The custom_id and the line of each row that is asked. Raises Trouble if two rows have one id."""
        asked = 0
        self.skipped, self.seen = 0, {}
        for number, row in self.table.rows():
            if limit is not None and asked >= limit:
                return
            request = self.request(number, row)
            if request is not None:
                asked += 1
                yield request

    def request(self, number: int, row: dict[str, str]) -> tuple[str, bytes] | None:
        """None for a row that is not asked."""
        if self.where is not None and not _rendered(lambda: self.where(_variables(row)), number):
            return None
        text = _rendered(lambda: self.prompt.render(_variables(row)), number)
        if not text.strip() or not any(cell.strip() for cell in row.values()):
            self.skipped += 1
            return None
        custom_id = self._id(number, row)
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            system = self.system
            messages.insert(0, {"role": "system", "content": _rendered(lambda: system.render(_variables(row)), number)})
        body: dict[str, Any] = {"messages": messages}
        if self.model:
            body["model"] = self.model
        if self.schema is not None:
            format = {"name": "answer", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": format}
        line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
        return custom_id, json.dumps(line).encode() + b"\n"

    def _id(self, number: int, row: dict[str, str]) -> str:
        if self.id_column is None:
            return f"row-{number}"
        custom_id = row[self.id_column].strip()
        if not custom_id:
            raise Trouble(f"Row {number} has nothing in {self.id_column!r}, which --id names.")
        if custom_id in self.seen:
            raise Trouble(
                f"Rows {self.seen[custom_id]} and {number} both have {custom_id!r} in {self.id_column!r}, which --id "
                "names. Name a column without duplicates, or leave out --id: then the number of the row is used."
            )
        self.seen[custom_id] = number
        return custom_id

    @property
    def columns(self) -> list[str]:
        """The columns of an answer: one for each property of the schema, or `answer`."""
        properties = (self.schema or {}).get("properties")
        return list(properties) if isinstance(properties, dict) and properties else ["answer"]


def _variables(row: dict[str, str]) -> dict[str, Any]:
    """The columns by their names, and all of them as `row`, for names that are no words: `row["First name"]`."""
    return {"row": row} | row


def _rendered(render: Any, number: int) -> Any:
    from jinja2 import TemplateError

    try:
        return render()
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise Trouble(f"The template fails for row {number}: {error}.") from None


def environment() -> Any:
    """A sandbox: a template that somebody else wrote reads the columns and nothing else. A column that is not
    there is an error, never an empty place in all prompts."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def template(text: str, table: Table, what: str) -> "Template":
    """Raises Trouble if it is no template, or names a column that is not there."""
    from jinja2 import TemplateSyntaxError, meta

    sandbox = environment()
    try:
        wanted: set[str] = meta.find_undeclared_variables(sandbox.parse(text)) - set(sandbox.globals)
    except TemplateSyntaxError as error:
        raise Trouble(f"{what}, line {error.lineno}: {error.message}.") from None
    refuse_unknown(wanted - {"row"}, table, what)
    found: Template = sandbox.from_string(text)
    return found


def condition(text: str, table: Table) -> Any:
    """An expression over the columns, such as `age|int > 30`. Raises Trouble as `template`."""
    template("{{ " + text + " }}", table, "--where")
    return environment().compile_expression(text, undefined_to_none=False)


def refuse_unknown(wanted: set[str], table: Table, what: str) -> None:
    unknown = sorted(wanted - set(table.columns))
    if unknown:
        raise Trouble(f"{what} names the column {unknown[0]!r}. There are: {', '.join(table.columns)}.")


def schema(path: Path) -> dict[str, Any]:
    """A JSON Schema from a file. Raises Trouble."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise Trouble(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise Trouble(f'{path} is no JSON Schema: expected an object such as {{"type": "object", …}}.')
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(found)
    except SchemaError as error:
        raise Trouble(f"{path} is no JSON Schema: {error.message}.") from None
    return found


@dataclass(frozen=True)
class Cells:
    """What one row gets. `answer` is by the names that the schema has for it, which may be those of our own columns."""

    answer: dict[str, str] = field(default_factory=dict)
    error: str = ""
    finish_reason: str = ""


class Answers:
    """Answer lines as cells: the columns of the answer, what went wrong, and why the model stopped."""

    def __init__(self, recipe: Recipe) -> None:
        self.columns = recipe.columns
        self.heads = _free([*self.columns, ERROR, FINISH_REASON], recipe.table.columns)
        self.validator: Any = None
        if recipe.schema is not None:
            from jsonschema import Draft202012Validator
            from referencing import Registry

            # Without a registry of its own it would fetch what a `$ref` names from the network.
            self.validator = Draft202012Validator(recipe.schema, registry=Registry())

    @property
    def error_head(self) -> str:
        """The name of the column that tells what went wrong."""
        return self.heads[len(self.columns)]

    def row(self, cells: Cells) -> list[str]:
        """The cells in the order of `heads`."""
        return [*(cells.answer.get(name, "") for name in self.columns), cells.error, cells.finish_reason]

    def cells(self, line: dict[str, Any] | None) -> Cells:
        """Of the line of an output or error file; None: there is none."""
        if line is None:
            return Cells(error="no answer")
        body = (line.get("response") or {}).get("body") or {}
        choices = body.get("choices") if isinstance(body, dict) else None
        if not choices:
            error = line.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
            told = f"{error.get('code') or ''}: {error.get('message') or ''}" if isinstance(error, dict) else str(error)
            return Cells(error=told.removeprefix(": ") or "no answer")
        answer = self._answer(choices[0]["message"].get("content") or "")
        return replace(answer, finish_reason=choices[0].get("finish_reason") or "")

    def _answer(self, text: str) -> Cells:
        if self.validator is None:
            return Cells({self.columns[0]: text})
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            return Cells(error=f"the answer is no JSON: {text}")
        from referencing.exceptions import Unresolvable

        try:
            problem = next(iter(self.validator.iter_errors(answer)), None)
        except Unresolvable as error:
            return Cells(error=f"the schema refers to {error.ref}, which is not in its file: {text}")
        if problem is not None:
            return Cells(error=f"the answer does not fit the schema ({problem.message}): {text}")
        if not isinstance(answer, dict):
            return Cells({self.columns[0]: _cell(answer)})
        return Cells({name: _cell(answer[name]) for name in self.columns if name in answer})


def _free(names: list[str], taken: list[str]) -> list[str]:
    """The names, each as the head of a column of its own: `answer_` stands before one that is taken already. The first
    of two equal names keeps it."""
    heads: list[str] = []
    for number, name in enumerate(names):
        head = name
        while head in taken or head in heads or (head != name and head in names[number:]):
            head = f"answer_{head}"
        heads.append(head)
    return heads


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
