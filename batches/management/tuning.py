"""Which slots and which context suit a model, this card and the lines of a file: asked of an Ollama, and measured.

Ollama reserves memory for OLLAMA_NUM_PARALLEL times the context when it loads a model, and what does not fit goes to
the CPU. How much fits can be found without a restart: a derived model with twice the context takes as much memory as
twice the slots. How fast more slots are than there are now can only be measured after a restart.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

from batches import backends
from batches.backends import slots
from batches.backends.base import BackendKind
from batches.backends.replies import JSON
from batches.backends.speed import Speed, measure
from batches.backends.states import ModelState
from batches.dispatch.context_fit import power_of_two
from batches.lines import jsonl, prompt
from common import strict_json
from common.jsonl import read_lines

CHAT = "/v1/chat/completions"
MOST_SLOTS = 16
MOST_LINES = 2000  # of a file that are sent; all of them are looked at
# Another number of slots is worth a restart if it is faster by so much.
WORTH_IT = 1.03
WITHOUT_FILE = "Tell a story about {} and a ship that comes home after {} years at sea."
ANSWER_TOKENS = 256
LEAST_CONTEXT = 2048

# Shows for so many seconds how a measurement goes on; gives what is to be called some times a second.
Bar = Callable[[str, float], AbstractContextManager[Callable[[], None]]]


class CannotTune(Exception):
    """The text says what to do."""


@dataclass(frozen=True)
class Workload:
    """The lines to send: how many there are for `model`, what the longest needs, and some of them in our order."""

    endpoint: str
    model: str
    lines: int
    context_tokens: int
    requests: list[tuple[str, JSON]]

    def forever(self, model: str) -> Iterator[tuple[str, JSON]]:
        """The requests, put to `model`, again and again."""
        for path, body in itertools.cycle(self.requests):
            yield path, body | {"model": model}


def without_file(model: str) -> Workload:
    """Short chats."""
    texts = [WITHOUT_FILE.format(*pair) for pair in itertools.product(("a cat", "a king", "two sisters"), range(2, 40))]
    bodies: list[JSON] = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": ANSWER_TOKENS} for text in texts
    ]
    return Workload(CHAT, model, 0, 0, [(CHAT, body) for body in bodies])


def of_file(path: Path, kind: BackendKind, model: str, default_model: str) -> Workload:
    """The lines of a file for `model`, or for the model that most lines name if it is empty; lines without one are for
    `default_model`. Raises CannotTune and OSError."""
    with path.open("rb") as file:
        raw = [each for each in read_lines(file, max_line_bytes=settings.MAX_LINE_BYTES) if each.content != b""]
    endpoint = _endpoint_of(raw[0].content or b"") if raw else ""
    if endpoint not in (CHAT, "/v1/completions", "/v1/responses"):
        raise CannotTune(
            f"{path} holds no lines for {CHAT}, /v1/completions or /v1/responses. Ollama computes embeddings one at a "
            "time, whatever is set."
        )
    requests = []
    for each in raw:
        try:
            request = jsonl.parse(
                each,
                endpoint=endpoint,
                default_model=default_model,
                max_line_bytes=settings.MAX_LINE_BYTES,
            )
        except jsonl.LineRefused as refusal:
            raise CannotTune(f"{path}, line {each.number}: {refusal.error['message']}") from None
        body = kind.translate(endpoint, request.body).body
        requests.append((backends.resolve_alias(request.model), prompt.measure(endpoint, body), body))
    model = model or Counter(named for named, _, _ in requests).most_common(1)[0][0]
    ours = [(measured, body) for named, measured, body in requests if kind.is_same(named, model)]
    if not ours:
        raise CannotTune(f"{path} has no line for {model}.")
    ours.sort(key=lambda each: each[0].order_key)
    # From the middle: what sorts first is often short.
    some = ours[max(0, (len(ours) - MOST_LINES) // 2) :][:MOST_LINES]
    need = max(measured.context_tokens for measured, _ in ours)
    return Workload(endpoint, model, len(ours), need, [(endpoint, body) for _, body in some])


def _endpoint_of(content: bytes) -> str:
    try:
        return str(strict_json.loads(content).get("url"))
    except (ValueError, AttributeError):
        return ""


@dataclass
class Found:
    """What was found out about `slots`, as many as there are now, with a `context` each that holds every line."""

    slots: int
    context: int
    fits: int | None = None  # tokens of all slots together that are wholly on the GPU; None: there is none
    is_full: bool = False  # more were tried, and a part went to the CPU
    speeds: list[Speed] = field(default_factory=list)  # with all on the GPU: one call at a time first, all slots last
    spilled: Speed | None = None  # of all slots, where these with this context do not fit

    @property
    def slots_that_fit(self) -> int:
        """With this context each; as many as there are if nothing is known."""
        return self.slots if self.fits is None else min(MOST_SLOTS, self.fits // self.context)

    @property
    def fastest(self) -> Speed:
        """The fewest calls that are not noticeably slower than the fastest."""
        most = max(speed.tokens_per_s for speed in self.speeds)
        return next(speed for speed in self.speeds if speed.tokens_per_s * WORTH_IT >= most)

    @property
    def best_slots(self) -> int:
        """The slots to set: more than there are now only if all of these pay and more fit."""
        if self.fastest.calls < self.slots:
            return max(1, min(self.fastest.calls, self.slots_that_fit))
        return max(1, self.slots_that_fit)

    @property
    def best_context(self) -> int:
        """The context to set: a smaller one only if not even one slot of this one fits."""
        if self.fits is None or self.fits >= self.context:
            return self.context
        return 1 << (max(1, self.fits).bit_length() - 1)

    @property
    def gain(self) -> float:
        """The tokens a second of the best that was measured, by those of now."""
        now = self.spilled or self.speeds[-1]
        best = max((each for each in self.speeds if each.calls <= self.best_slots), key=lambda each: each.tokens_per_s)
        return best.tokens_per_s / now.tokens_per_s


class Tuner:
    """Asks and measures. Loads models of its own, and deletes them in `close`."""

    def __init__(self, kind: BackendKind, load: Workload, *, mark: str, look: Callable[[], None]) -> None:
        self._kind = kind
        self._load = load
        self._mark = mark
        self._look = look
        self._made: set[str] = set()
        self._own_context = 0  # of the model as it is; 0: not known yet
        self._connection = backends.connect()
        self._exchange = self._connection.exchange(None)

    def count_slots(self) -> int | None:
        """The slots of the model as it is, which is loaded; None if they cannot be counted."""
        requests = self._kind.slot_requests(self._load.model)
        return slots.count(backends.connect, requests, is_cut=lambda: False)

    def load(self, tokens: int) -> tuple[str, ModelState]:
        """Load the model with this context, 0 for its own, and tell its name and state. Raises CannotTune."""
        if tokens == self._own_context:
            tokens = 0  # Ollama would go on with the model that is loaded, and list it by that name alone
        name = self._kind.derived_name(self._load.model, tokens, self._mark) if tokens else self._load.model
        if tokens and name not in self._made:
            self._made.add(name)  # first: what is made is deleted, whatever happens
            if not name or not self._kind.derive(self._exchange, name):
                raise CannotTune(f"{self._kind.title} could not make a model with a context of {tokens:,}.")
        request = self._kind.load(self._load.endpoint, name)
        status, answer = self._exchange(*request) if isinstance(request, tuple) else (200, None)
        state = self._kind.describe(self._exchange, name) if status == 200 else None
        if state is None or not state.context_tokens:
            raise CannotTune(
                f"{self._kind.title} cannot load {self._load.model} (HTTP {status}). See its log. {answer}"
            )
        if not tokens:
            self._own_context = state.context_tokens
        self._look()
        return name, state

    def find_out(self, seconds: float, *, tell: Callable[[str], object], bar: Bar) -> Found:
        """Find how much fits, and measure so many seconds with each number of calls. Raises CannotTune, NotMeasured."""
        _, own = self.load(0)
        most = own.most_context_tokens or own.context_tokens
        need = self._load.context_tokens
        context = min(most, max(LEAST_CONTEXT, power_of_two(need)) if need else own.context_tokens)
        found = Found(self.count_slots() or settings.BACKEND_PARALLEL or 1, context)
        slots = "1 slot" if found.slots == 1 else f"{found.slots} slots"
        tell(f"It has {slots}, and a context of {own.context_tokens:,} each as it is.")
        if own.size_vram:
            self._find_room(found, most, tell)
        measured = found.context
        if found.fits is not None and found.fits < found.slots * found.context:
            tell(f"{found.slots} slots of {found.context:,} do not fit. So fast they are all the same:")
            found.spilled = self._measure(found.context, found.slots, seconds, tell, bar)
            measured = max(LEAST_CONTEXT, found.fits // found.slots)
        for calls in steps(found.slots):
            found.speeds.append(self._measure(measured, calls, seconds, tell, bar))
        return found

    def _find_room(self, found: Found, most: int, tell: Callable[[str], object]) -> None:
        for tokens in contexts_to_try(found.context, found.slots, most):
            if not self._is_on_gpu(tokens, found.slots, tell):
                found.is_full = True
                break
            found.fits = tokens * found.slots
        tokens = found.context
        while found.fits is None:
            tokens //= 2
            if tokens < LEAST_CONTEXT or self._is_on_gpu(tokens, found.slots, tell):
                found.fits = tokens * found.slots if tokens >= LEAST_CONTEXT else 0

    def _is_on_gpu(self, tokens: int, slots: int, tell: Callable[[str], object]) -> bool:
        _, state = self.load(tokens)
        percent = 100 * state.size_vram // max(1, state.size)
        tell(f"With {tokens * slots:,} tokens in all slots, {percent} % of it is on the GPU.")
        return state.size_vram >= state.size

    def _measure(self, context: int, calls: int, seconds: float, tell: Callable[[str], object], bar: Bar) -> Speed:
        name, _ = self.load(context)
        with bar(f"{calls} at once", seconds) as look:
            requests = self._load.forever(name)
            speed = measure(backends.connect, requests, calls=calls, seconds=seconds, look=look)
        tell(f"{calls} at once, with a context of {context:,}: {speed.tokens_per_s:.1f} tokens/s.")
        return speed

    def close(self) -> None:
        for name in self._made:
            backends.delete(self._kind.name, name, is_loaded=True)
        self._connection.close()


def contexts_to_try(context: int, slots: int, most: int) -> list[int]:
    """Contexts whose memory tells how many slots of `context` would fit, where there are `slots` now: growing, `most`
    at most. Pure."""
    tries = [context]
    while tries[-1] * slots < MOST_SLOTS * context and tries[-1] * 2 <= most:
        tries.append(tries[-1] * 2)
    return tries


def steps(slots: int) -> list[int]:
    """How many calls in flight are measured, where there are `slots`: powers of two, and all. Pure."""
    return [*itertools.takewhile(lambda each: each < slots, (1 << power for power in range(10))), slots]
