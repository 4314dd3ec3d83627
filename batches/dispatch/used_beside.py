"""Whether somebody at the model server itself uses the model of a drive's lines, as its gaps tell. Pure.

Ollama sets the time at which it will unload a model when a request ends and no other is at work (server/sched.go,
processCompleted). A gap begins with the end of our last call. If that did not set the time, somebody else's request was
at work then.
"""


class UsedBeside:
    """Tell it each answer to a line, and what each list of loaded models says of the drive's model."""

    def __init__(self) -> None:
        self._model = self._until = ""
        self._is_set = False  # since it was last found used: some servers list the same time for ever
        self._was_answered = False

    def note_answer(self) -> None:
        """The model answered a line of ours."""
        self._was_answered = True

    def look(self, model: str, until: str, *, after_gap: bool) -> bool:
        """Whether somebody else used `model` when the gap began. `until` changes as `BackendKind.loaded` says."""
        is_same = (model, until) == (self._model, self._until)
        if model == self._model and not is_same:
            self._is_set = True
        was_answered, self._was_answered = self._was_answered, False
        self._model, self._until = model, until
        is_used = is_same and until != "" and after_gap and was_answered and self._is_set
        if is_used:
            self._is_set = False  # a request that hangs for good is believed once
        return is_used
