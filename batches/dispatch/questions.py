"""The questions that a drive asks the model server for a model's sake, so that lines for that model can be sent."""

from dataclasses import dataclass
from enum import Enum

from django.conf import settings

from batches import backends
from batches.backends import slots
from batches.backends.base import BackendKind
from batches.backends.in_flight import Call
from batches.backends.replies import JSON

# The server is stuck if a loaded model does not answer a trial within this time, or within LINE_TIMEOUT_S: no line is
# answered faster. A user who sets that to a second or two does not think of the first request after a hang.
TRIAL_TIMEOUT_S, LEAST_TRIAL_TIMEOUT_S = 120.0, 10.0
UNLOAD_TIMEOUT_S = 30.0
LIGHT_TIMEOUT_S = 10.0
NOTHING: tuple[str, JSON] = ("", {})


class Purpose(Enum):
    LIST_LOADED = "list the models that are loaded"
    UNLOAD = "take a model off the card"
    LOAD = "load a model"
    TRIAL = "answer a request that any server in order answers"
    DERIVE = "derive a model with a larger context from a model"
    DESCRIBE = "tell the context and the memory of a model"
    OCCUPANCY = "tell how many calls it computes, and how many wait"
    COUNT_SLOTS = "answer several requests at once, so that it can be seen how many the server computes at once"


# Questions that cost the server no computing, and are asked beside running calls.
LIGHT = (Purpose.LIST_LOADED, Purpose.DERIVE, Purpose.DESCRIBE, Purpose.OCCUPANCY)


@dataclass(frozen=True)
class Question:
    """A question about `model`, as lines name it; put to `served`, if that is a model derived from it."""

    purpose: Purpose
    endpoint: str
    model: str
    is_beside: bool = False  # a trial of a model that is loaded: it computes beside running calls
    served: str = ""

    @property
    def served_model(self) -> str:
        """The model's name in the request."""
        return self.served or self.model

    @property
    def is_light(self) -> bool:
        return self.purpose in LIGHT

    @property
    def needs_alone(self) -> bool:
        """The question is asked with nothing else in flight, by a drive that has the backend to itself."""
        return not (self.is_light or self.is_beside)

    @property
    def most_together(self) -> int | None:
        """How many calls may be in flight while this one is; None: as many as there is room for."""
        return 1 if self.needs_alone else None

    def call(self, kind: BackendKind, *, is_loaded: bool) -> "Call[Question]":
        """The call that asks the question. `is_loaded`: the model is loaded, as far as is known."""
        model = self.served_model
        match self.purpose:
            case Purpose.COUNT_SLOTS:
                return self._count_slots(kind)
            case Purpose.OCCUPANCY:
                return self._occupancy(kind)
            case Purpose.LIST_LOADED:
                return Call(self, "", {}, LIGHT_TIMEOUT_S, ask=kind.loaded, is_light=True)
            case Purpose.DERIVE:
                return Call(self, "", {}, LIGHT_TIMEOUT_S, lambda exchange: kind.derive(exchange, model), True)
            case Purpose.DESCRIBE:
                return Call(self, "", {}, LIGHT_TIMEOUT_S, lambda exchange: kind.describe(exchange, model), True)
            case Purpose.UNLOAD:
                return Call(self, *(kind.unload(model) or NOTHING), UNLOAD_TIMEOUT_S)
            case Purpose.LOAD:
                load = kind.load(self.endpoint, model) or NOTHING
                if callable(load):
                    return Call(self, "", {}, settings.MODEL_LOAD_TIMEOUT_S, ask=load)
                return Call(self, *load, settings.MODEL_LOAD_TIMEOUT_S)
            case Purpose.TRIAL:
                # A server that loads a model with its first request may have to load this one now.
                timeout_s = _trial_timeout_s() if is_loaded else settings.MODEL_LOAD_TIMEOUT_S
                return Call(self, self.endpoint, kind.trial(self.endpoint, model), timeout_s)

    def _occupancy(self, kind: BackendKind) -> "Call[Question]":
        call: Call[Question] = Call(self, "", {}, LIGHT_TIMEOUT_S, is_light=True)

        def read(path: str) -> tuple[int, str]:
            assert call.connection is not None  # the thread that runs the call has set it
            return call.connection.text(path, call=call)

        call.ask = lambda _: kind.occupancy(read)
        return call

    def _count_slots(self, kind: BackendKind) -> "Call[Question]":
        call: Call[Question] = Call(self, "", {}, TRIAL_TIMEOUT_S)
        requests = kind.slot_requests(self.served_model)
        call.ask = lambda _: slots.count(backends.connect, requests, is_cut=lambda: call.is_cut)
        return call


def _trial_timeout_s() -> float:
    return min(TRIAL_TIMEOUT_S, max(LEAST_TRIAL_TIMEOUT_S, settings.LINE_TIMEOUT_S or TRIAL_TIMEOUT_S))
