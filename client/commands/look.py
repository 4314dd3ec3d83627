"""Commands that change nothing: list, show, watch, results, errors."""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from client import checking, delivery, family, rendering, watching
from client.api import FINAL, Server
from client.commands.session import LAST, Session, batch_id, options
from client.trouble import Interrupted, Refused, Trouble

FOLLOW_EVERY_S = 2.0


@click.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many, the newest first.")
@click.option("--status", help="Only those of this status, such as in_progress.")
@options
def list_batches(session: Session, limit: int, status: str | None) -> None:
    """List batches, the newest first."""
    server = session.server()
    every = server.objects("batches", most=None if status else limit)
    found = list(islice((each for each in every if status in (None, each["status"])), limit))
    if session.as_json:
        session.show({"object": "list", "data": found})
        return
    if not found:
        session.tell("There is no such batch." if status else "There is no batch yet.")
        return
    heads = ("id", "status", "lines", "failed", "model", "created", "window ends", "file")
    rendering.table(heads, [_row(batch) for batch in found])


def _row(batch: dict[str, Any]) -> list[str]:
    told = batch["request_counts"]
    done = told["completed"] + told["failed"]
    window = "" if batch["status"] in FINAL else rendering.clock(batch["expires_at"])
    return [
        *(batch["id"], batch["status"], f"{done}/{told['total']}", str(told["failed"]), batch["model"] or ""),
        *(rendering.clock(batch["created_at"]), window, (batch["metadata"] or {}).get("input_file", "")),
    ]


@click.command()
@click.argument("batch", default=LAST)
@options
def show(session: Session, batch: str) -> None:
    """Show one batch: how far it is, what it waits for, when it ends."""
    server = session.server()
    found = server.batch(batch_id(server, batch))
    progress = server.get(f"batches/{found['id']}/progress")
    if session.as_json:
        session.show({"batch": found, "progress": progress})
        return
    told = {
        "Batch": found["id"],
        "Status": found["status"],
        "Lines": rendering.counts(progress),
        "Speed": rendering.speed(progress),
        "Waits for": progress["waiting_for"],
        "Takes": rendering.disk(progress),
        "Model": found["model"],
        "File": (found["metadata"] or {}).get("input_file"),
        "Retry of": found.get("retry_of"),
        "Created": rendering.clock(found["created_at"]),
        "Window ends": "" if found["status"] in FINAL else rendering.clock(found["expires_at"]),
        "Warnings": " ".join(warning["message"] for warning in progress["warnings"] or []),
        "Results": found["output_file_id"] and f"{session.command} results {found['id']} -o FILE",
        "Reasons": found["error_file_id"] and f"{session.command} errors {found['id']}",
    }
    for name, value in told.items():
        if value:
            click.echo(f"{name + ':':13}{rendering.printable(str(value))}")
    if found["errors"]:
        click.echo("Mistakes:\n" + delivery.mistakes(found["errors"]["data"]))


@click.command()
@click.argument("batch", default=LAST)
@click.option("--exit-status", is_flag=True, help="End with 1 unless every line was answered.")
@options
def watch(session: Session, batch: str, exit_status: bool) -> None:
    """Watch a batch to its end. Ctrl-C ends the watching alone: the batch goes on."""
    server = session.server()
    found = batch_id(server, batch)
    over = followed(session, server, found)
    session.end(over, *about_end(session, over))
    if exit_status and (over["status"] != "completed" or over["request_counts"]["failed"]):
        sys.exit(1)


def followed(session: Session, server: Server, found: str) -> dict[str, Any]:
    """The batch when it is over. Raises Interrupted, with how to come back, on Ctrl-C."""
    session.tell(f"Batch {found}")
    try:
        return watching.until_over(server, found, watching.display(session.as_json))
    except KeyboardInterrupt:
        raise Interrupted(
            f"{found} goes on at {server.base}. Come back: {session.command} watch {found}. "
            f"Stop it: {session.command} cancel {found}."
        ) from None


def about_end(session: Session, batch: dict[str, Any]) -> Iterator[str]:
    """What a person is told of a batch that is over."""
    told = batch["request_counts"]
    yield f"{batch['id']} is {batch['status']}: {told['completed']:,} of {told['total']:,} lines answered."
    if batch["output_file_id"]:
        yield f"Results: {session.command} results {batch['id']} -o FILE"
    if batch["error_file_id"]:
        yield f"Why lines failed: {session.command} errors {batch['id']}"
    if batch["errors"]:
        yield "The file has mistakes:\n" + delivery.mistakes(batch["errors"]["data"])


@click.command()
@click.argument("batch", default=LAST)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file for them; without it they are printed.")
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@click.option(
    "--follow", is_flag=True, help="Print each answer as it comes, in order of finishing, until the batch ends."
)
@click.option(
    "--merged", is_flag=True, help="With the answers of the batches that retried its lines, or that it retried."
)
@options
def results(session: Session, batch: str, output: Path | None, force: bool, follow: bool, merged: bool) -> None:
    """Give the answers of a batch as JSON lines; of a running one, those that there are."""
    if follow and merged:
        raise click.UsageError("--follow and --merged exclude each other: what is merged has ended.")
    server = session.server()
    found = server.batch(batch_id(server, batch))
    chunks = _merged(server, found) if merged else _answers(session, server, found, follow=follow)
    if output is not None:
        delivery.put(chunks, output, force=force)
        session.tell(f"Results: {output}")
        return
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _answers(session: Session, server: Server, batch: dict[str, Any], *, follow: bool) -> Iterator[bytes]:
    if batch["status"] in FINAL:
        if batch["output_file_id"]:
            yield from server.content(batch["output_file_id"])
        else:
            click.echo(f"{batch['id']} is {batch['status']} and has no answers.", err=True)
        return
    after = 0
    while True:
        chunk = server.finished_lines(batch["id"], after=after)
        yield from (line + b"\n" for line in chunk.lines)
        if not chunk.is_incomplete:
            return
        if not follow:
            click.echo(f"Incomplete: {batch['id']} goes on. With --follow the rest comes too.", err=True)
            return
        if chunk.last_line == after:
            time.sleep(FOLLOW_EVERY_S)
        after = chunk.last_line


def _merged(server: Server, batch: dict[str, Any]) -> Iterator[bytes]:
    """The answers of the whole family: of the first batch, then of each batch that retried lines of another."""
    whole = family.of(server, batch)
    if running := family.running(whole):
        raise Trouble(f"{', '.join(running)} has not ended. Wait for it, or leave out --merged.")
    for each in whole:
        if each["output_file_id"]:
            yield from server.content(each["output_file_id"])


@click.command()
@click.argument("batch", default=LAST)
@click.option("--lines", "as_lines", is_flag=True, help="Print the error lines themselves, as JSON lines.")
@options
def errors(session: Session, batch: str, as_lines: bool) -> None:
    """Sum up why lines of a batch failed, and what helps."""
    server = session.server()
    found = server.batch(batch_id(server, batch))
    if as_lines:
        if found["error_file_id"]:
            for chunk in server.content(found["error_file_id"]):
                sys.stdout.buffer.write(chunk)
            return
        for each in server.finished_lines(found["id"], "errors").lines:
            sys.stdout.buffer.write(each + b"\n")
        return
    reasons = _reasons(server, found)
    if session.as_json:
        session.show({"object": "list", "data": reasons})
        return
    if found["errors"]:
        click.echo("Nothing was run, the file has mistakes:\n" + delivery.mistakes(found["errors"]["data"]))
    elif not reasons:
        click.echo(f"No line of {found['id']} has failed.")
    for line in delivery.summed_up(reasons, command=session.command, batch_id=found["id"]):
        click.echo(line)


def _reasons(server: Server, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """As the server counts them; by the error file where the server is of a version that does not."""
    try:
        data: list[dict[str, Any]] = server.get(f"batches/{batch['id']}/reasons")["data"]
    except Refused as error:
        if error.status != 404 or not batch["error_file_id"]:
            raise
        chunks = server.content(batch["error_file_id"])
        return delivery.reasons(b"".join(chunks).splitlines())
    return data


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options
def check(session: Session, file: Path) -> None:
    """Say what is wrong with a file of requests, without a batch. Ends with 1 if anything is.

    If a server answers, it is asked whether it has the models, and whether the longest prompts fit them.
    """
    models = _models(session)
    report = checking.check(file, models)
    longest = report.longest_of_all
    if session.as_json:
        counts = {"lines": report.lines, "endpoint": report.endpoint, "models": dict(report.models)}
        told = {"longest": {"line": longest.line, "characters": longest.characters}}
        session.show(counts | told | {"errors": report.mistakes, "warnings": report.warnings})
    else:
        about = f" for {report.endpoint}" if report.endpoint else ", none of which is a request"
        click.echo(f"{rendering.printable(str(file))}: {rendering.lines(report.lines)}{about}.")
        for model, count in report.models.most_common():
            click.echo(
                f"  {rendering.lines(count)} for {rendering.printable(model) or 'the default model of the server'}"
            )
        if longest.line:
            click.echo(
                f"The longest prompt is that of line {longest.line}: {longest.characters:,} letters, roughly "
                f"{longest.tokens:,} tokens."
            )
        if models is None and report.models:
            click.echo("Nobody was asked for these models: no server answers, or it has no model server.")
        for warning in report.warnings:
            click.echo(f"Warning: {rendering.printable(warning)}")
        click.echo("Mistakes:\n" + delivery.mistakes(report.mistakes) if report.mistakes else "No mistake was found.")
    if report.mistakes:
        sys.exit(1)


def _models(session: Session) -> checking.Models | None:
    """What the server says of models, by any name that lines may use; None if no server answers and none was named, or
    if the server has no model server to ask."""
    try:
        server = session.server()
    except Trouble:
        if session.address is not None:
            raise
        return None
    if not server.get("models")["data"]:
        return None

    def has(name: str) -> bool:
        if any(part in (".", "..") for part in name.split("/")):
            return False  # as an address it would lead elsewhere: models/../files is files
        try:
            server.get(f"models/{quote(name, errors='replace')}")
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def context(name: str) -> int | None:
        told: int | None = server.get(f"models/{quote(name)}", context="true").get("context_tokens")
        return told

    return checking.Models(has, context)
