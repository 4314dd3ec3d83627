"""A moment now and then in which nothing of ours is at the server, so that others can have another model loaded, and
are seen if they use ours.

Ollama unloads a model only while no request for it is open, and takes new ones for it even if a request for another
model waits for that (server/sched.go: refCount, getRunner). So a batch that always has a call in flight would keep
others waiting until its end, and Ollama's list of loaded models tells nothing of them. Pure.
"""

EVERY_S = 30.0
# So long Ollama needs at most to begin to unload a model once it is idle.
LASTS_S = 0.1
# While the last calls of several finish, slots are idle: gaps come so seldom that this is less than a fiftieth.
LEAST_RATIO = 50


class Gap:
    """When the gaps of one drive are. Ask `keeps_back` before something is sent."""

    def __init__(self, now: float) -> None:
        self._due_at = now + EVERY_S
        self._began: float | None = None
        self._idle_since: float | None = None

    def keeps_back(self, now: float, *, is_idle: bool) -> bool:
        """Nothing may be sent now, because a gap is due or lasts. `is_idle`: nothing of ours is at the server."""
        if now < self._due_at:
            return False
        if self._began is None:
            self._began = now
        if not is_idle:
            return True
        if self._idle_since is None:
            self._idle_since = now
        return now < self._idle_since + LASTS_S

    @property
    def is_on(self) -> bool:
        """Nothing is in flight, and the gap is not over: ask again soon."""
        return self._idle_since is not None

    def is_over(self, now: float) -> bool:
        """True once after each gap: look what is loaded now."""
        if self._began is None or self._idle_since is None or now < self._idle_since + LASTS_S:
            return False
        self._due_at = now + max(EVERY_S, LEAST_RATIO * (now - self._began))
        self._began = self._idle_since = None
        return True
