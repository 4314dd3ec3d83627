"""`run FILE`: from a file of requests to a file of answers. Safe to repeat."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from client import delivery, input_file, memory, own_server, watching
from client.api import FINAL
from client.commands.session import WINDOW_HELP, Session, options, window_text
from client.delivery import Destination
from client.memory import DIGEST_KEY, Memory
from client.own_server import Found
from client.trouble import Interrupted

DEFAULT_WINDOW = "7d"
LONGEST_METADATA = 512


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: FILE.results.jsonl, beside FILE.")
@click.option("--force", is_flag=True, help="Overwrite results that are there already.")
@click.option("--window", default=DEFAULT_WINDOW, show_default=True, callback=window_text, help=WINDOW_HELP)
@click.option("--priority", type=click.Choice(["high", "low"]), help="Before or after the lines of all other batches.")
@click.option("--again", is_flag=True, help="Ask everything again, although this file was run before.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@options
def run(
    session: Session,
    file: Path,
    output: Path | None,
    force: bool,
    window: str,
    priority: str | None,
    again: bool,
    detach: bool,
) -> None:
    """Run a file of requests as a batch, and write the answers beside it.

    The same command again asks nothing twice: it comes back to the running batch, or fetches the answers of the one
    that ended. Starts a server of this checkout if none is running.
    """
    endpoint = input_file.endpoint_of(file)
    digest = input_file.digest_of(file)
    destination = Destination.of(file, output, force=force)
    if again:
        destination.refuse_existing()
    with own_server.found(session.checkout, session.address, session.tell) as found:
        if detach and found.is_own:
            raise click.UsageError(
                "--detach needs a server that goes on afterwards: "
                f"{session.checkout.server_command} in another terminal."
            )
        metadata = {DIGEST_KEY: digest, "input_file": file.name[:LONGEST_METADATA]}
        metadata |= {"priority": priority} if priority else {}
        asked = {"endpoint": endpoint, "completion_window": window, "metadata": metadata}
        batch = begun(session, found, file, digest, asked, refuse_existing=destination.refuse_existing, again=again)
        if detach:
            session.end(batch, f"Watch it: {session.command} watch {batch['id']}")
            return
        batch = followed(session, found, batch)
        delivery.deliver(found.server, batch, destination)
    if session.as_json:
        session.show(batch)
    tell_rest(session, batch, destination, file)


def begun(
    session: Session,
    found: Found,
    file: Path,
    digest: str,
    asked: dict[str, Any],
    *,
    refuse_existing: Callable[[], None],
    again: bool,
    name: str = "",
) -> dict[str, Any]:
    """The batch of this file: the one that was made for it before, or a new one. `name` is what the server calls the
    file, that of its path if empty. `refuse_existing` is asked before a
    batch is made or waited for, and raises Trouble if results of another run are in the way."""
    remembered = Memory(session.checkout.state_dir, found.key)
    with remembered.locked():
        batch = None if again else memory.find(found.server, remembered, digest)
        if batch is None or batch["status"] not in FINAL:
            refuse_existing()
        if batch is None:
            uploaded = found.server.upload(file, digest=digest, name=name)
            batch = found.server.post("batches", {"input_file_id": uploaded["id"]} | asked)
            session.tell(f"Batch {batch['id']}")
        else:
            session.tell(
                f"Batch {batch['id']}, made for this file before, is {batch['status']}. Nothing is asked twice "
                "(--again asks everything again)."
            )
        remembered.remember(digest, batch["id"])
    return batch


def followed(
    session: Session, found: Found, batch: dict[str, Any], each: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The batch when it is over; `each` is called now and then until then. Raises Interrupted on Ctrl-C: what goes on,
    and how to come back."""
    if batch["status"] in FINAL:
        return batch
    try:
        return watching.until_over(found.server, batch["id"], watching.display(session.as_json), each)
    except KeyboardInterrupt:
        kept = f"Interrupted. {batch['id']} is kept, with every finished line."
        if found.is_own:
            raise Interrupted(
                f"{kept} This command started the server and stops it now, so the batch waits. To go on, type the same "
                "command again: it asks no finished line twice."
            ) from None
        raise Interrupted(
            f"{kept} It goes on at {found.server.base}. Come back: {session.command} watch {batch['id']}, or the same "
            f"command again, which asks nothing twice. Stop it: {session.command} cancel {batch['id']}."
        ) from None


def tell_rest(session: Session, batch: dict[str, Any], destination: Destination, file: Path) -> None:
    """Where the answers are. Raises Trouble, with the reasons, if lines have none."""
    if session.as_json and batch["error_file_id"] is None:
        return
    delivery.tell(batch, destination, requests=None if session.as_json else file, command=session.command)
