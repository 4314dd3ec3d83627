"""`manage.py tune_backend [FILE]`: which slots and which context suit this card, this model and these lines."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from batches import backends, registry
from batches.backends.base import BackendKind
from batches.backends.connection import BROKEN
from batches.backends.speed import NotMeasured
from batches.management import tuning
from batches.management.tuning import CannotTune, Found, Tuner, Workload
from batches.models import Backend, Hold
from common import schema
from common.database import from_now


class Command(BaseCommand):
    help = (
        "Measure how many lines at once, with which context, give the most tokens a second on this Ollama without "
        "leaving a part of the model to the CPU, and print the lines for Ollama's environment. Batches wait meanwhile."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, nargs="?", help="the requests to tune for, as for a batch")
        parser.add_argument("--model", default="", help="default: what most lines of the file name, or MODEL_NAME")
        parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (default: 60)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["seconds"] <= 0:
            raise CommandError("--seconds has to be above 0.")
        try:
            state = backends.probe()
        except backends.Unreachable as error:
            raise CommandError(str(error)) from None
        kind = backends.kind_named(state.kind)
        if not kind.derives:
            raise CommandError(f"{kind.title} at {settings.BACKEND_URL} is no Ollama: it is tuned by its own options.")
        try:
            load = self._workload(kind, options["file"], options["model"])
            if not kind.listed_name(state.names, load.model):
                hint = backends.missing_model_hint(state.kind, load.model, state.names)
                raise CommandError(f"{kind.title} does not have the model {load.model}. {hint}")
            self._advise(self._tune(kind, load, options["seconds"], state.derived))
        except (CannotTune, NotMeasured) as error:
            raise CommandError(str(error)) from None
        except BROKEN as error:
            raise CommandError(f"{type(error).__name__}: {error}") from None

    def _workload(self, kind: BackendKind, file: Path | None, model: str) -> Workload:
        if file is None:
            return tuning.without_file(backends.resolve_alias(model or registry.default_model()))
        load = tuning.of_file(file, kind, backends.resolve_alias(model) if model else "", registry.default_model())
        need = f"the longest may need about {load.context_tokens:,} tokens, prompt and answer"
        self.stdout.write(f"{load.model}: {load.lines:,} lines of {file}; {need}.")
        return load

    def _tune(self, kind: BackendKind, load: Workload, seconds: float, derived: list[str]) -> Found:
        # Not the mark of batches' models, which the worker deletes because no batch needs them.
        mark = hashlib.sha256(f"tune {schema.mark()}".encode()).hexdigest()[:6]
        for name in derived:
            if (left := kind.derived(name)) and left.mark == mark:  # by a run that was killed
                backends.delete(kind.name, name, is_loaded=False)
        pause = _Pause(registry.own_backend())
        tuner = Tuner(kind, load, mark=mark, look=pause.renew)
        try:
            self.stdout.write(f"Loading {load.model}…")
            return tuner.find_out(seconds, tell=self.stdout.write, bar=_bar(pause))
        finally:
            tuner.close()
            pause.end()

    def _advise(self, found: Found) -> None:
        say = self.stdout.write
        say("\nBatches choose by themselves what needs no restart: the context of their lines (FIT_CONTEXT), and as")
        say("many in flight as there are slots. The rest belongs in Ollama's environment (systemctl edit ollama):")
        say("\n[Service]")
        advised = {"NUM_PARALLEL": str(found.best_slots), "CONTEXT_LENGTH": str(found.best_context)}
        if found.is_full:
            advised |= {"FLASH_ATTENTION": "1", "KV_CACHE_TYPE": "q8_0"}
        for name, value in advised.items():
            say(f'Environment="OLLAMA_{name}={value}"')
        say(
            f"\nGain, as far as it can be measured before a restart: {found.gain:.2f} times the tokens a second of now."
        )
        if found.best_slots > found.slots:
            say(f"More slots fit than there are: with {found.best_slots}, run this again to measure what they gain.")
        if found.is_full:
            say("q8_0 halves the memory of contexts, unless it is set already. Once it is set, run this again: up to")
            say(f"{max(1, min(tuning.MOST_SLOTS, 2 * found.slots_that_fit))} slots will fit.")


class _Pause:
    """No line is sent to the backend while this lasts; call `renew` often. If we are killed, it ends by itself."""

    # Loading a large model may take minutes, and nothing is renewed meanwhile.
    LIFETIME, RENEW_EVERY_S = timedelta(minutes=5), 5.0

    def __init__(self, backend: Backend) -> None:
        until = from_now(self.LIFETIME)
        self._row = Hold.objects.create(backend=backend, reason=Hold.Reason.PAUSED, until=until)
        self._renewed_at = time.monotonic()

    def renew(self) -> None:
        if time.monotonic() >= self._renewed_at + self.RENEW_EVERY_S:
            self._renewed_at = time.monotonic()
            Hold.objects.filter(pk=self._row.pk).update(until=from_now(self.LIFETIME))

    def end(self) -> None:
        Hold.objects.filter(pk=self._row.pk).delete()


def _bar(pause: _Pause) -> tuning.Bar:
    @contextmanager
    def bar(what: str, seconds: float) -> Iterator[Callable[[], None]]:
        started, total = time.monotonic(), max(1, round(seconds))
        with tqdm(total=total, desc=what, unit="s", disable=None, leave=False) as shown:

            def look() -> None:
                pause.renew()
                shown.update(min(total, int(time.monotonic() - started)) - shown.n)

            yield look

    return bar
