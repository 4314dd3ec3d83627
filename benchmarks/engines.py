"""The interface between the model server and its engine, which computes the answers or only waits."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MODEL = "fixed-latency:latest"


@dataclass
class Wanted:
    """How to answer. A single model is loaded already. Of several, one is loaded at a time, which takes `swap_s`."""

    latency_ms: float = 0.0
    slots: int = 0  # 0: no limit
    words: int = 80  # of an answer
    models: list[str] = field(default_factory=lambda: [MODEL])
    swap_s: float = 0.0


@dataclass(eq=False)
class Call:
    model: str
    path: str
    body: bytes
    reply: Callable[[bytes], None]  # takes the JSON of the answer
    timer: asyncio.TimerHandle | None = None

    @property
    def only_loads(self) -> bool:
        return not self.path.startswith("/v1/")


class Engine(Protocol):
    """Answers a call once its turn has come. `done` is called on the event loop."""

    def load(self, wanted: Wanted, model: str, done: Callable[[], None]) -> None: ...

    def answer(self, wanted: Wanted, call: Call, done: Callable[[bytes], None]) -> None: ...

    def close(self) -> None: ...
