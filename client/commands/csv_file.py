"""`csv FILE`: a table in, the same table with the answers as columns out. Safe to repeat."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from client import delivery, family, own_server, prompts, rendering, scores
from client.api import Server
from client.commands.run import DEFAULT_WINDOW, LONGEST_METADATA, begun, followed
from client.commands.session import WINDOW_HELP, Session, options, window_text
from client.memory import DIGEST_KEY
from client.own_server import Found
from client.prompts import ENDPOINT, Answers, Recipe
from client.scores import Partial, Spool
from client.table import Table, described
from client.trouble import Interrupted, Trouble

SHOWN_ROWS = 3
SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Order:
    """What was ordered of one run, and the answers that it has so far."""

    session: Session
    recipe: Recipe
    answers: Spool
    output: Path
    force: bool
    window: str
    again: bool

    @cached_property
    def partial(self) -> Partial:
        return Partial(self.recipe, self.answers, self.output)

    def refuse_existing(self) -> None:
        if self.output.exists() and not self.force:
            raise Trouble(f"{self.output} is there already. Name another file by -o, or overwrite it with --force.")


@click.command("csv")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, type=click.Path(path_type=Path), help="A template: {{ column }} is a cell.")
@click.option("--system", type=click.Path(path_type=Path), help="A template for the system message.")
@click.option(
    "--schema", type=click.Path(path_type=Path), help="A JSON Schema of the answers; its properties are columns."
)
@click.option("--model", help="Default: the server's.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file for rows and answers.")
@click.option("--id", "id_column", metavar="COLUMN", help="What rows are known by. Default: their number.")
@click.option("--where", metavar="EXPRESSION", help='Only rows for which this holds, such as "age|int > 30".')
@click.option(
    "--limit", type=click.IntRange(1), help="Try so many rows, tell how long all take, and ask whether to go on."
)
@click.option("-y", "--yes", is_flag=True, help="Go on after the trial without asking.")
@click.option("--delimiter", help="Between cells. Default: what the file looks like.")
@click.option("--encoding", help="Default: what the file looks like.")
@click.option("--force", is_flag=True, help="Overwrite the output if it is there.")
@click.option("--window", default=DEFAULT_WINDOW, show_default=True, callback=window_text, help=WINDOW_HELP)
@click.option("--again", is_flag=True, help="Ask everything again, although it was asked before.")
@options
def csv_file(
    session: Session,
    file: Path,
    prompt: Path,
    system: Path | None,
    schema: Path | None,
    model: str | None,
    output: Path,
    id_column: str | None,
    where: str | None,
    limit: int | None,
    yes: bool,
    delimiter: str | None,
    encoding: str | None,
    force: bool,
    window: str,
    again: bool,
) -> None:
    """Ask a prompt for each row of a CSV file, and write the rows with the answers.

    The columns of the answer are the properties of --schema, or `answer`; beside them `error` and `finish_reason`. A
    name that is taken gets `answer_` before it.

    The same command again asks nothing twice. While it runs, OUTPUT.part has the rows that are answered so far.
    """
    delivery.Destination.of(file, output, force=force)
    if delimiter is not None and len(delimiter) != 1:
        raise click.BadParameter(f"--delimiter {delimiter!r}: expected one character.")
    table = Table.of(file, encoding=encoding, delimiter=delimiter)
    session.tell(described(table))
    if id_column is not None:
        prompts.refuse_unknown({id_column}, table, "--id")
    recipe = Recipe(
        table,
        prompt=prompts.template(_text(prompt), table, str(prompt)),
        system=prompts.template(_text(system), table, str(system)) if system else None,
        where=prompts.condition(where, table) if where else None,
        id_column=id_column,
        schema=prompts.schema(schema) if schema else None,
        model=model,
    )
    total = sum(1 for _ in recipe.requests())
    if not total:
        raise Trouble(_none_asked(recipe))
    session.tell(f"{total:,} rows are asked; {recipe.skipped:,} with an empty prompt are skipped.")
    with Spool(output.absolute().parent) as answers:
        order = Order(session, recipe, answers, output, force, window, again)
        if again:
            order.refuse_existing()
        with own_server.found(session.checkout, session.address, session.tell) as found:
            batches = list(_run(order, found, limit, total, yes=yes))
            if not batches:
                return
            failed = _write(order, found.server, batches)
    session.end(
        {"object": "list", "data": batches},
        f"Results: {output} ({total:,} rows asked, {total - len(answers.with_answer):,} without an answer; see the "
        f"column {Answers(recipe).error_head})",
        *(
            f"Why: {session.command} errors {each}. Ask them again: {session.command} retry {each}, and then the same "
            "command with --force."
            for each in failed
        ),
    )


def _none_asked(recipe: Recipe) -> str:
    """Why no row is left to ask."""
    rows = sum(1 for _ in recipe.table.rows())
    if not rows:
        return f"{recipe.table.path} has no rows, only the names of its columns."
    left_out = rows - recipe.skipped
    told = [f"{recipe.skipped:,} with an empty prompt"] if recipe.skipped else []
    told += [f"{left_out:,} that --where leaves out"] if left_out else []
    return f"No row of {recipe.table.path} is asked. There are {' and '.join(told)}."


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise Trouble(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _run(order: Order, found: Found, limit: int | None, total: int, *, yes: bool) -> Iterator[dict[str, Any]]:
    """The batches that together ask all rows, each when it is over; none if the trial is enough for now."""
    if limit is None or limit >= total:
        yield _batch(order, found, 0, total)
        return
    trial = _batch(order, found, 0, limit)
    for told in _trial(order, found.server, trial, total - limit):
        order.session.tell(told)
    if not yes and not click.confirm(f"Go on with the other {total - limit:,} rows?", err=order.session.as_json):
        order.partial.remove()
        order.session.tell("Nothing was written. The same command again does not ask the trial's rows again.")
        return
    yield trial
    _take(order, found.server, trial)  # for the table that grows
    yield _batch(order, found, limit, total)


def _batch(order: Order, found: Found, start: int, end: int) -> dict[str, Any]:
    """The batch of the asked rows from `start` to `end`, when it is over. Raises Trouble if its file had mistakes."""
    with tempfile.NamedTemporaryFile(prefix=".requests-", suffix=".jsonl", dir=order.output.absolute().parent) as file:
        digest = hashlib.sha256()
        for number, (_, line) in enumerate(order.recipe.requests(end)):
            if number >= start:
                file.write(line)
                digest.update(line)
        file.flush()
        metadata = {DIGEST_KEY: digest.hexdigest(), "input_file": order.recipe.table.path.name[:LONGEST_METADATA]}
        asked = {"endpoint": ENDPOINT, "completion_window": order.window, "metadata": metadata}
        batch = begun(
            order.session,
            found,
            Path(file.name),
            digest.hexdigest(),
            asked,
            refuse_existing=order.refuse_existing,
            again=order.again,
            name=f"{order.recipe.table.path.name}.requests.jsonl",
        )
    batch = _followed(order, found, batch)
    if batch["status"] == "failed":
        raise Trouble("Nothing was run, the requests have mistakes:\n" + delivery.mistakes(batch["errors"]["data"]))
    return batch


def _write(order: Order, server: Server, batches: list[dict[str, Any]]) -> list[str]:
    """Write the table; the ids of the batches whose lines have no answer, to be retried."""
    failed = list(filter(None, [_take(order, server, batch) for batch in batches]))
    table = scores.table(order.recipe, order.answers, answered_only=False)
    delivery.put(table, order.output, force=order.force)
    order.partial.remove()
    return failed


def _take(order: Order, server: Server, batch: dict[str, Any]) -> str | None:
    """Take the answers of a batch that is over, and of the batches that retried its lines; the id of the last one that
    has lines without an answer."""
    if batch["error_file_id"] is None:
        order.answers.add(server.lines(batch["output_file_id"]), are_answers=True)
        return None
    whole = family.of(server, batch)
    for running in family.running(whole):
        order.session.tell(f"{running} still asks some rows again. The same command with --force has its answers then.")
    for each in whole:
        order.answers.add(server.lines(each["output_file_id"]), are_answers=True)
    # Why a row has none after all: the last reason.
    for each in reversed(whole):
        order.answers.add(server.lines(each["error_file_id"]))
    return whole[-1]["id"] if whole[-1]["error_file_id"] else None


def _followed(order: Order, found: Found, batch: dict[str, Any]) -> dict[str, Any]:
    """As `run.followed`, with the rows that are answered so far beside the output."""
    partial = order.partial
    try:
        return followed(order.session, found, batch, lambda: partial.look(found.server, batch["id"]))
    except Interrupted:
        order.session.tell(f"Writing the rows that are answered so far to {partial.path}…")
        found.server.patience_s = 0.0  # whoever typed Ctrl-C waits for nothing else
        partial.write(found.server, batch["id"])
        raise


def _trial(order: Order, server: Server, batch: dict[str, Any], left: int) -> Iterator[str]:
    """A few answers, and how long the other rows take at the speed of these."""
    answers = Answers(order.recipe)
    for text, _ in zip(server.lines(batch["output_file_id"]), range(SHOWN_ROWS), strict=False):
        answer: dict[str, Any] = json.loads(text)
        cells = zip(answers.heads, answers.row(answers.cells(answer)), strict=True)
        told = ", ".join(f"{name}: {value}" for name, value in cells if value)
        yield rendering.short(f"{answer['custom_id']} → {told}", 200)
    failed = batch["request_counts"]["failed"]
    if failed:
        yield f"{failed} of the trial's rows failed: {order.session.command} errors {batch['id']}"
    speed = server.get(f"batches/{batch['id']}/progress")["lines_per_minute"]
    if not speed:
        yield "How long the other rows take is not known: the trial is too short to tell."
        return
    needed_s = left / speed * 60
    yield f"At {speed:,.1f} rows a minute the other {left:,} rows take {rendering.duration(needed_s)}."
    window_s = int(order.window[:-1]) * SECONDS[order.window[-1]]
    if needed_s > window_s:
        yield f"That is longer than the completion window of {order.window}: name a longer one by --window, up to 30d."
