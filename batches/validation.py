"""Validation: each line of the input file becomes a row, or the batch fails and its bad lines are named."""

import errno
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from batches import backends, creation, leases, lifecycle, registry, reuse, steps
from batches.backends.base import BackendKind
from batches.lifecycle import Outcome
from batches.lines import fingerprint, jsonl, prompt
from batches.models import Backend, Batch, Lease, Line, LineState, Part, Status
from common import database, failpoints
from common.database import bulk_writes, insert
from common.disk import trouble
from common.errors import batch_error
from common.jsonl import RawLine, read_lines
from files_api.models import File

logger = logging.getLogger(__name__)

SLICE_S = 2.0
# Large groups: one write of 5000 rows touches fewer pages of the indexes than five writes of 1000, and writes half as
# many bytes to the disk. The larger the batch, the further apart are the places of two rows in an index, and the more
# rows a page needs to be worth its write: so a group is a twentieth of what is stored already. With random custom_ids
# and 1,000,000 lines SQLite then writes half as much, and takes 4 µs less of CPU time a line. Nobody else writes
# meanwhile, 0.3 s for the largest groups.
LEAST_GROUP_LINES, MOST_GROUP_LINES = 5000, 20_000
GROUP_SHARE = 20
GROUP_BYTES = 32 * 2**20
MOST_ERRORS = 100


def validate(batch_id: str) -> Outcome:
    """Read on from where the last slice stopped, for SLICE_S at most; MORE if there is more to read.

    Safe to run twice and at once: the cursor moves in the transaction that stores the lines, and one lease holds the
    batch. The next slice reads a lost one again.
    """
    return steps.run(batch_id, "validate", Q(status=Status.VALIDATING), _validate)


def _validate(batch: Batch, keeper: leases.Keeper) -> Outcome:
    file = File.objects.all().held(batch.input_file_id, batch.pk)
    if file is None or file.purpose != "batch":
        return _fail_whole(batch, keeper.lease, _file_problem(batch, file))
    if not file.content:
        return _fail_whole(batch, keeper.lease, _file_problem(batch, None))
    try:
        return _validate_slice(batch, file, keeper.lease)
    except OSError as error:  # a file that has a row and is not there is a fault of the host, and none of the batch
        raise steps.CannotGoOn(f"The input file cannot be read: {trouble(error)}") from error


def _file_problem(batch: Batch, file: File | None) -> dict[str, Any]:
    if file is None:
        message = f"Cannot find file {batch.input_file_id}."
    else:
        message = f"File {file.pk} has the purpose '{file.purpose}'; a batch needs a file with the purpose 'batch'."
    return batch_error("invalid_request", message, param="file_id")


def _validate_slice(batch: Batch, file: File, lease: Lease) -> Outcome:
    ends_at = time.monotonic() + SLICE_S
    if file.content.size < file.bytes:  # it would seem to end there, maybe in the middle of a line
        raise FileNotFoundError(errno.ENOENT, "A part of the file is missing")
    check = _LineCheck(batch)
    with bulk_writes(), file.content.open("rb") as stream:
        lines = read_lines(
            stream,
            offset=batch.validated_bytes,
            number=batch.validated_lines,
            max_line_bytes=settings.MAX_LINE_BYTES,
        )
        for group in _groups(lines, batch, check.kind):
            _store(batch, lease, check, group)
            group.parsed.clear()  # or it would be in memory while the next group is read
            failpoints.reach("mid_validation")
            if batch.total + batch.error_count > settings.MAX_BATCH_LINES:
                message = f"The file has more than {settings.MAX_BATCH_LINES} lines (MAX_BATCH_LINES)."
                return _fail_whole(batch, lease, batch_error("too_many_lines", message))
            if error := _too_many_open_lines(batch):
                return _fail_whole(batch, lease, error)
            if time.monotonic() > ends_at:
                return Outcome.MORE
    return _finish(batch, lease)


def _too_many_open_lines(batch: Batch) -> dict[str, Any] | None:
    """The `errors` entry of a batch with whose lines its owner has more open ones than allowed."""
    most = batch.owner.limit("open_lines")
    if most is None or (lines := creation.open_lines(batch.owner)) <= most:
        return None
    message = (
        f"With this file '{batch.owner.name}' would have {lines} lines or more without a result, and may have {most} "
        "(OWNER_MAX_OPEN_LINES, or the owner's page in the admin). Create the batch once others are over, or split it."
    )
    return batch_error("too_many_open_lines", message)


class _NewLine(NamedTuple):
    """A good line, as it is stored."""

    number: int
    offset: int
    length: int
    custom_id: str
    named: str
    model: str  # what `named` stands for, by MODEL_ALIASES, under the name by which a backend lists it
    order_key: bytes
    context_tokens: int
    digest: bytes | None


class _Group(NamedTuple):
    """Lines that are stored in one transaction, and the place in the file after them. Their bytes are not kept."""

    parsed: list[_NewLine | jsonl.LineRefused]
    next_offset: int
    last_number: int


def _groups(lines: Iterator[RawLine], batch: Batch, kind: BackendKind) -> Iterator[_Group]:
    parsed: list[_NewLine | jsonl.LineRefused] = []
    start, number = batch.validated_bytes, batch.validated_lines
    raw = None
    # Settings are looked up once: a look-up for each line would take a tenth of its time.
    parse = partial(
        jsonl.parse,
        endpoint=batch.endpoint,
        default_model=registry.default_model(),
        max_line_bytes=settings.MAX_LINE_BYTES,
    )
    resolve = cache(partial(_resolved, among=list(Backend.objects.exclude(kind="").order_by("pk"))))
    translate = partial(kind.translate, batch.endpoint)
    for raw in lines:
        if raw.content != b"":
            try:
                request = parse(raw)
            except jsonl.LineRefused as refusal:
                parsed.append(refusal)
            else:
                sent = translate(request.body).body
                parsed.append(_new_line(request, batch.endpoint, resolve(request.model), sent))
        # Lines of white space count too: millions of them must not make one slice.
        if raw.number - number >= _group_lines(number) or raw.next_offset - start >= GROUP_BYTES:
            yield _Group(parsed, raw.next_offset, raw.number)
            parsed, start, number = [], raw.next_offset, raw.number
    if parsed and raw is not None:
        yield _Group(parsed, raw.next_offset, raw.number)


def _group_lines(stored: int) -> int:
    """How many lines are stored at once after so many of the batch."""
    return min(MOST_GROUP_LINES, max(LEAST_GROUP_LINES, stored // GROUP_SHARE))


def _resolved(named: str, *, among: Collection[Backend]) -> str:
    """The model that a line names, under one name for all that mean the same model; as it stands if none lists it."""
    model = backends.resolve_alias(named)
    return registry.listed_name(model, among) or model


def _new_line(request: jsonl.Request, endpoint: str, model: str, sent: dict[str, Any]) -> _NewLine:
    """`sent`: the body as the model server gets it, so that lines which say the same in other words are the same."""
    number, offset, length, custom_id, named, _ = request
    order_key, tokens = prompt.measure(endpoint, sent)
    digest = fingerprint.digest(endpoint, model, sent)
    return _NewLine(number, offset, length, custom_id, named, model, order_key, tokens, digest)


def _store(batch: Batch, lease: Lease, check: "_LineCheck", group: _Group) -> None:
    """Store the good lines and note the bad ones of a group, and move the cursor. Raises LeaseLost."""
    # Earlier groups are searched for a custom_id only if the file is bad anyway, or if the constraint reports one: in a
    # good file the search would find nothing.
    try:
        _try_to_store(batch, lease, check, group, look_back=batch.error_count > 0)
    except IntegrityError:
        _try_to_store(batch, lease, check, group, look_back=True)


def _try_to_store(batch: Batch, lease: Lease, check: "_LineCheck", group: _Group, *, look_back: bool) -> None:
    good, bad = check(group.parsed, look_back=look_back)
    progress = {
        "errors": batch.errors + bad[: max(0, MOST_ERRORS - len(batch.errors))],
        "error_count": batch.error_count + len(bad),
        "validated_bytes": group.next_offset,
        "validated_lines": group.last_number,
        "total": batch.total + len(good),
    }
    by_part: defaultdict[Part, list[_NewLine]] = defaultdict(list)
    for line in good:
        by_part[check.part(line.model)].append(line)
    tokens = {part: max(line.context_tokens for line in lines) for part, lines in by_part.items()}
    with transaction.atomic():
        ours = Batch.objects.filter(pk=batch.pk, status=Status.VALIDATING, lease=lease)
        # The lease first: the moved cursor is committed with its lines or not at all.
        if not leases.renew(lease) or not ours.update(nudged_at=database.now(), **progress):
            raise leases.LeaseLost
        repeated = 0
        for part, lines in by_part.items():
            repeated += _insert(part, lines)
            if tokens[part] > part.context_tokens:
                Part.objects.filter(pk=part.pk).update(context_tokens=tokens[part])
        if repeated:
            ours.update(repeated=F("repeated") + repeated)
    for part, need in tokens.items():
        part.context_tokens = max(need, part.context_tokens)
    for name, value in progress.items():
        setattr(batch, name, value)


def _insert(part: Part, lines: list[_NewLine]) -> int:
    """Store lines of one part as rows; a line equal to an earlier one becomes its repeat. The number of repeats."""
    digests = {line.digest for line in lines if line.digest is not None}
    originals = reuse.originals(part, digests) if digests else {}
    first: dict[bytes, int] = {}  # digest -> number of the first line with it, if new in this group
    new, repeated = [], []
    for line in lines:
        digest = line.digest
        if digest is None or (digest not in originals and first.setdefault(digest, line.number) == line.number):
            new.append((part.batch_id, part.pk, *line[:4], line.order_key, digest))
        else:
            repeated.append((digest, (part.batch_id, part.pk, *line[:4], LineState.REPEATED.value)))
    names = ("batch", "part", "number", "offset", "length", "custom_id")
    insert(Line, (*names, "order_key", "digest"), new)
    if repeated:
        numbers = [first[digest] for digest, _ in repeated if digest in first]
        rows = Line.objects.filter(batch=part.batch_id, number__in=numbers).values_list("digest", "pk")
        originals |= {bytes(digest): pk for digest, pk in rows if digest is not None}
        insert(Line, (*names, "state", "original"), [(*row, originals[digest]) for digest, row in repeated])
    return len(repeated)


def _finish(batch: Batch, lease: Lease) -> Outcome:
    if batch.total + batch.error_count == 0:
        return _fail_whole(batch, lease, batch_error("empty_file", "The file has no request."))
    if batch.error_count:
        if more := batch.error_count - len(batch.errors):
            batch.errors.append(batch_error("more_errors", f"{more} more lines are invalid and not listed."))
        lifecycle.move(batch.pk, Status.FAILED, lease=lease, errors=batch.errors, total=0, repeated=0)
        return Outcome.DONE
    models = list(batch.parts.values_list("model", flat=True)[:2])
    lifecycle.move(batch.pk, Status.IN_PROGRESS, lease=lease, model=models[0] if len(models) == 1 else None)
    return Outcome.DONE


def _fail_whole(batch: Batch, lease: Lease, error: dict[str, Any]) -> Outcome:
    """Fail the batch for a reason that concerns the file and no single line."""
    lifecycle.move(batch.pk, Status.FAILED, lease=lease, errors=[error], total=0, repeated=0)
    return Outcome.DONE


class _LineCheck:
    """Sorts a group of lines into requests and `errors` entries: by the rules of jsonl, by custom_ids that occurred
    before, and by models that no backend has. Models are checked only against fresh lists; without one, a missing
    model is found when its first line is sent."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.backends = [backend for backend in Backend.objects.exclude(kind="") if backend.is_fresh]
        # Of several kinds nobody knows yet which one gets a line: then its body counts as it was written.
        kinds = {backend.kind for backend in self.backends}
        self.kind = backends.kind_named(kinds.pop()) if len(kinds) == 1 else BackendKind()
        self.known_models: dict[str, bool] = {}
        self.parts: dict[str, Part] = {}

    def part(self, model: str) -> Part:
        """The part of the batch for the lines of this model; made if there is none."""
        if model not in self.parts:
            self.parts[model], _ = Part.objects.get_or_create(batch=self.batch, model=model)
        return self.parts[model]

    def __call__(
        self, parsed: list[_NewLine | jsonl.LineRefused], *, look_back: bool
    ) -> tuple[list[_NewLine], list[dict[str, Any]]]:
        """`look_back`: compare custom_ids with those of stored lines too, not only within this group."""
        good: list[_NewLine] = []
        bad: list[dict[str, Any]] = []
        seen: set[str] = set()
        if look_back:
            ids = [line.custom_id for line in parsed if isinstance(line, _NewLine)]
            seen.update(self.batch.lines.filter(custom_id__in=ids).values_list("custom_id", flat=True))
        for line in parsed:
            if isinstance(line, jsonl.LineRefused):
                bad.append(line.error)
            elif line.custom_id in seen:
                bad.append(_duplicate(line))
            elif not self._knows(line.model):
                bad.append(self._unknown_model(line))
            else:
                seen.add(line.custom_id)
                good.append(line)
        return good, bad

    def _knows(self, model: str) -> bool:
        if not self.backends:
            return True
        if model not in self.known_models:
            self.known_models[model] = any(backend.has_model(model) for backend in self.backends)
        return self.known_models[model]

    def _unknown_model(self, line: _NewLine) -> dict[str, Any]:
        hint = self.backends[0].missing_model_hint(line.model, self.batch.endpoint)
        if line.model != line.named:
            hint = f"MODEL_ALIASES maps it to {line.model}, which is not there. {hint}"
        message = f"The provided model '{line.named}' is not supported by the Batch API. {hint}"
        return batch_error("model_not_found", message, param="body.model", line=line.number)


def _duplicate(line: _NewLine) -> dict[str, Any]:
    message = (
        f"The custom_id '{line.custom_id}' for this request is a duplicate of another request. The custom_id parameter "
        "must be unique for each request in a batch."
    )
    return batch_error("duplicate_custom_id", message, param="custom_id", line=line.number)
