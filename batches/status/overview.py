"""What the server does now: which batches send lines, what waits behind them and in which order. Writes no row.

The work is bounded: forecasts are made for the first MOST_TOLD batches, the others are only counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from batches import registry
from batches.models import Backend, Batch, Hold, Line, LineState, Status
from batches.scheduling import switch, turns
from batches.status import progress
from batches.status.progress import Progress
from files_api.models import File
from files_api.storage import free_bytes

MOST_TOLD = 6
MOST_LISTED = 20


@dataclass(frozen=True)
class Told:
    """A batch that is not over. `progress` is None where too many are before it to make forecasts for all."""

    batch: Batch
    filename: str
    progress: Progress | None = None


@dataclass(frozen=True)
class Overview:
    """`sending` have lines at a model server. `waiting` come in the order of their turns, then those that are paused,
    stalled, or are not validated yet. `ending` write their result files. `more`: of those that wait, not listed."""

    sending: list[Told] = field(default_factory=list)
    waiting: list[Told] = field(default_factory=list)
    ending: list[Told] = field(default_factory=list)
    more: int = 0
    backends: list[Backend] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    free_bytes: int | None = None


def now() -> Overview:
    backends = registry.live_backends()
    claimed = Line.objects.filter(lease__isnull=False, state=LineState.RUNNING).values_list("batch", flat=True)
    in_turn = [part.batch_id for backend in backends for part in turns.order(backend, MOST_LISTED)]
    open_ = Batch.objects.filter(status__in=switch.PAUSABLE).defer("errors", "metadata")
    known = open_.in_bulk({*claimed, *in_turn})
    sending = [known[pk] for pk in dict.fromkeys(claimed) if pk in known]
    # Those behind them had no turn to come: paused, stalled, without a model, or not validated yet.
    others = open_.order_by("paused_at", "-priority", "created_at")[: MOST_LISTED + len(known)]
    waiting = [known[pk] for pk in dict.fromkeys(in_turn) if pk in known and known[pk] not in sending]
    waiting += [each for each in others if each.pk not in known]
    settling = Batch.objects.filter(status__in=(Status.FINALIZING, Status.CANCELLING)).defer("errors", "metadata")
    ending = list(settling.order_by("created_at")[:MOST_LISTED])
    Batch.read_counters([*sending, *waiting, *ending])
    tell = _teller(sending, waiting)
    return Overview(
        sending=tell(sending),
        waiting=tell(waiting[:MOST_LISTED]),
        ending=tell(ending),
        more=max(0, open_.count() - len(sending) - MOST_LISTED),
        backends=backends,
        holds=list(Hold.objects.all().active().order_by("pk")[:MOST_LISTED]),
        free_bytes=free_bytes(),
    )


def _teller(sending: list[Batch], waiting: list[Batch]) -> Callable[[list[Batch]], list[Told]]:
    first = [*sending, *waiting][:MOST_TOLD]
    made = {each.batch.pk: each for each in progress.of_each(first)}

    def tell(batches: list[Batch]) -> list[Told]:
        names = filenames(batches)
        return [Told(each, names[each.pk], made.get(each.pk)) for each in batches]

    return tell


def filenames(batches: list[Batch]) -> dict[str, str]:
    """The names of the input files as their owners know them, by the ids of the batches; a file without a row is known
    by what the batch calls it."""
    files = File.objects.filter(pk__in={batch.input_file_id for batch in batches})
    names = dict(files.values_list("pk", "filename"))
    return {batch.pk: names.get(batch.input_file_id) or batch.input_file_id or "no file" for batch in batches}
