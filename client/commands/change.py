"""Commands that change a batch: cancel, pause, resume, extend, retry, priority."""

import sys

import click

from client import rendering
from client.commands.look import about_end, followed
from client.commands.session import Session, batch_id, options, window_text

# As metadata.priority has them at the creation of a batch.
PRIORITIES = {"low": -1, "normal": 0, "high": 1}


def is_asked() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


@click.command()
@click.argument("batches", nargs=-1, required=True, metavar="BATCH...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options
def cancel(session: Session, batches: tuple[str, ...], yes: bool) -> None:
    """Cancel batches. Finished lines are kept, and are in their results."""
    server = session.server(changes=True)
    for named in batches:
        found = batch_id(server, named)
        if not yes and is_asked():
            lines = rendering.counts(server.get(f"batches/{found}/progress"))
            click.confirm(f"Cancel {found} ({lines})? Its answers are kept, the other lines are not asked.", abort=True)
        batch = server.post(f"batches/{found}/cancel")
        session.end(batch, f"{found} is {batch['status']}.")


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH...]")
@click.option("--all", "every", is_flag=True, help="All batches, later ones too.")
@options
def pause(session: Session, batches: tuple[str, ...], every: bool) -> None:
    """Send no more lines until `resume`: of these batches, or of all. Calls in flight are still answered."""
    _switch(session, "pause", batches, every)


@click.command()
@click.argument("batches", nargs=-1, metavar="[BATCH...]")
@click.option("--all", "every", is_flag=True, help="End the pause of all batches.")
@options
def resume(session: Session, batches: tuple[str, ...], every: bool) -> None:
    """Send lines again: of these batches, or of all."""
    _switch(session, "resume", batches, every)


def _switch(session: Session, what: str, batches: tuple[str, ...], every: bool) -> None:
    if bool(batches) == every:
        raise click.UsageError(f"Name the batches to {what}, or --all.")
    server = session.server(changes=True)
    done = "Paused" if what == "pause" else "Resumed"
    for path, name in (
        [("batches", "all batches")]
        if every
        else [(f"batches/{found}", found) for found in (batch_id(server, named) for named in batches)]
    ):
        session.end(server.post(f"{path}/{what}"), f"{done} {name}.")


@click.command()
@click.argument("batch")
@click.argument("window", callback=window_text)
@options
def extend(session: Session, batch: str, window: str) -> None:
    """Move the end of a batch's window to WINDOW from now, such as 7d or 36h. It never ends earlier than before."""
    server = session.server(changes=True)
    found = server.post(f"batches/{batch_id(server, batch)}/extend", {"completion_window": window})
    session.end(found, f"The window of {found['id']} ends {rendering.clock(found['expires_at'])}.")


@click.command()
@click.argument("batch")
@click.option("--errors", type=click.Choice(["all", "failed", "expired"]), default="all", show_default=True)
@click.option(
    "--code", "codes", multiple=True, metavar="CODE", help="Only lines that failed with this code; repeatable."
)
@click.option("--model", help="Ask this model instead.")
@click.option("--window", default="7d", show_default=True, callback=window_text, help="The window of the new batch.")
@click.option("--watch", "and_watch", is_flag=True, help="Watch the new batch to its end.")
@options
def retry(
    session: Session, batch: str, errors: str, codes: tuple[str, ...], model: str | None, window: str, and_watch: bool
) -> None:
    """Make a batch of the lines of another that have no answer."""
    server = session.server(changes=True)
    parent = batch_id(server, batch)
    body = {"errors": errors, "codes": list(codes), "model": model, "completion_window": window}
    found = server.post(f"batches/{parent}/retry", {name: value for name, value in body.items() if value})
    if and_watch:
        over = followed(session, server, found["id"])
        session.end(over, *about_end(session, over))
        return
    session.end(
        found,
        f"Batch {found['id']} asks the lines of {parent} again.",
        f"Watch it: {session.command} watch {found['id']}",
        f"All answers in one file, once it has ended: {session.command} results {found['id']} --merged -o FILE",
    )


@click.command()
@click.argument("batch")
@click.argument("level", metavar="high|normal|low")
@options
def priority(session: Session, batch: str, level: str) -> None:
    """Send the lines of a batch before (high) or after (low) those of other batches."""
    number = PRIORITIES.get(level)
    if number is None:
        try:
            number = int(level)
        except ValueError:
            raise click.BadParameter(f"{level!r}: expected high, normal, low or a whole number.") from None
    server = session.server(changes=True)
    found = server.post(f"batches/{batch_id(server, batch)}/priority", {"priority": number})
    session.end(found, f"The priority of {found['id']} is {level}.")
