"""Result files on this machine: written beside and renamed, never over what is there."""

import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from client import input_file, rendering
from client.api import Server
from client.hints import hint
from client.trouble import Trouble

SAMPLE_LINES = 3
MOST_REASONS = 10


@dataclass(frozen=True)
class Destination:
    """Where the answers go; the error lines go to a file beside it."""

    results: Path
    force: bool = False

    @classmethod
    def of(cls, requests: Path, output: Path | None, *, force: bool) -> "Destination":
        """`output`, or `in.results.jsonl` for `in.jsonl`. Raises Trouble if nothing can be written there."""
        if output is None:
            output = requests.with_name(requests.name.removesuffix(".jsonl") + ".results.jsonl")
        directory = output.absolute().parent
        if not directory.is_dir():
            raise Trouble(f"There is no directory {directory} for the results. Make it, or name another by -o.")
        if not os.access(directory, os.W_OK):
            raise Trouble(f"No file can be written in {directory}. Name another place for the results by -o.")
        if output.is_dir() or (output.exists() and output.samefile(requests)):
            raise Trouble(
                f"{output} cannot take the results: it is {'a directory' if output.is_dir() else 'the input'}."
            )
        return cls(output, force)

    @property
    def errors(self) -> Path:
        return self.results.with_name(self.results.stem + ".errors" + (self.results.suffix or ".jsonl"))

    def refuse_existing(self) -> None:
        """Before anything is sent: results that are there are of another run."""
        for path in (self.results, self.errors):
            if path.exists() and not self.force:
                raise Trouble(f"{path} is there already. Name another file by -o, or overwrite it with --force.")


def fetch(server: Server, file_id: str, target: Path, *, force: bool = False) -> None:
    """Write the file of the server to `target`, whole or not at all.

    Raises Trouble if another file is there, and `force` does not say to overwrite it. If the same bytes are there,
    nothing changes, so this is safe to repeat.
    """
    promised = server.get(f"files/{file_id}")["bytes"]
    put(server.content(file_id), target, force=force, promised_bytes=promised)


def put(chunks: Iterable[bytes], target: Path, *, force: bool = False, promised_bytes: int | None = None) -> None:
    """As `fetch`, from chunks of bytes."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if promised_bytes is not None and beside.stat().st_size != promised_bytes:
            raise Trouble(
                f"{target} was not written: {beside.stat().st_size} of {promised_bytes} bytes came. Try again."
            )
        if force:
            beside.replace(target)
        else:
            _name(beside, target)
    except OSError as error:
        raise Trouble(f"{target} cannot be written: {error.strerror}.") from None
    finally:
        beside.unlink(missing_ok=True)


def _name(beside: Path, target: Path) -> None:
    """Give the new file its name, unless the name is taken by other bytes."""
    try:
        os.link(beside, target)  # fails if another program took the name meanwhile; a rename would overwrite
    except FileExistsError:
        if not filecmp.cmp(beside, target, shallow=False):
            raise Trouble(
                f"{target} is there already. Name another file by -o, or overwrite it with --force."
            ) from None
    except OSError:
        # A file system without links, such as FAT.
        if target.exists():
            raise Trouble(
                f"{target} is there already. Name another file by -o, or overwrite it with --force."
            ) from None
        beside.replace(target)


def deliver(server: Server, batch: dict[str, Any], destination: Destination) -> None:
    """Write both result files of a batch that is over. Raises Trouble if its file had mistakes."""
    if batch["status"] == "failed":
        raise Trouble("Nothing was run, the file has mistakes:\n" + mistakes(batch["errors"]["data"]))
    files = ((batch["output_file_id"], destination.results), (batch["error_file_id"], destination.errors))
    for file_id, target in files:
        if file_id is not None:
            fetch(server, file_id, target, force=destination.force)
        elif destination.force:
            # What lies there is of another run, and would pass for a result of this one.
            with suppress(OSError):
                target.unlink(missing_ok=True)


def tell(batch: dict[str, Any], destination: Destination, *, requests: Path | None, command: str) -> None:
    """A few answers, where the results are, and why lines failed. Raises Trouble if any line has no answer."""
    if batch["output_file_id"] is not None:
        for question, answer in _sample(requests, destination.results) if requests else ():
            click.echo(f"\n{question}\n  → {answer}")
        click.echo(f"\nResults: {destination.results} ({rendering.lines(batch['request_counts']['completed'])})")
    if batch["error_file_id"] is not None:
        with destination.errors.open("rb") as lines:
            found = reasons(lines)
        told = "\n".join(summed_up(found, command=command, batch_id=batch["id"]))
        raise Trouble(
            f"Some lines have no answer; the batch is {batch['status']}. They are in {destination.errors}:\n{told}"
        )


def mistakes(errors: list[dict[str, Any]]) -> str:
    """One line for each message, with the numbers of the lines that have it."""
    lines_with: dict[str, list[int]] = {}
    for error in errors:
        lines_with.setdefault(error["message"], []).extend(filter(None, [error["line"]]))
    shown = []
    for message, numbers in lines_with.items():
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        message = rendering.printable(message)  # it quotes names out of the file
        shown.append(f"  line {numbers[0]}{more}: {message}" if numbers else f"  {message}")
    return "\n".join(shown)


def reasons(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The reasons in lines of an error file, as `/reasons` gives them: the commonest first, with their first lines."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        result = json.loads(line)
        code, message = _reason(result)
        # Messages that differ in their numbers alone, such as the tokens of a prompt, are one reason.
        alike = (code, re.sub(r"\d+", "0", message))
        reason = found.setdefault(alike, {"code": code or None, "message": message, "count": 0, "first": []})
        reason["count"] += 1
        if len(reason["first"]) < SAMPLE_LINES:
            reason["first"].append(result["custom_id"])
    return sorted(found.values(), key=lambda reason: -reason["count"])


def _reason(result: dict[str, Any]) -> tuple[str, str]:
    """Code and message: our own of a line that had no reply, or those of the model server's reply."""
    response = result.get("response") or {}
    body = response.get("body") or {}
    told = result.get("error") or (body.get("error") if isinstance(body, dict) else None)
    if isinstance(told, dict):
        code = told.get("code") or told.get("type") or response.get("status_code")
        return str(code or ""), str(told.get("message") or "")
    return str(response.get("status_code") or ""), str(told or "")


def summed_up(found: list[dict[str, Any]], *, command: str, batch_id: str) -> Iterator[str]:
    """`48 × context_length_exceeded: … (first: a, b)`, and below each what helps."""
    for reason in found[:MOST_REASONS]:
        named = f"{rendering.short(reason['code'], 80)}: " if reason["code"] else ""
        first = ", ".join(rendering.short(each, 40) for each in reason["first"][:SAMPLE_LINES])
        yield f"  {reason['count']:,} × {named}{rendering.short(reason['message'], 300)} (first: {first})"
        if helps := hint(reason["code"], command=command, batch_id=batch_id):
            yield f"      {helps}"
    if more := found[MOST_REASONS:]:
        yield f"  {sum(reason['count'] for reason in more):,} more lines for {len(more):,} other reasons."


def _sample(requests: Path, results: Path) -> Iterator[tuple[str, str]]:
    """The first questions and their answers, each cut to the terminal's width."""
    width = min(shutil.get_terminal_size().columns, 120) - 6
    answers: dict[str, str] = {}
    with results.open(encoding="utf-8") as lines:
        for text, _ in zip(lines, range(SAMPLE_LINES), strict=False):
            result = json.loads(text)
            answers[result["custom_id"]] = input_file.text_of(result["response"]["body"])
    for _, line in input_file.lines(requests):
        if not answers:
            return
        request = json.loads(line)
        answer = answers.pop(request.get("custom_id", ""), None)
        if answer is not None:
            yield rendering.short(input_file.text_of(request["body"]), width), rendering.short(answer, width)
