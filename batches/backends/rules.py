"""The table by which a kind of server's error replies are judged."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batches.backends.error_bodies import ErrorBody
from batches.backends.replies import Verdict


@dataclass(frozen=True)
class Rule:
    """A row of a kind's table: the first row that fits decides. `texts` are looked for in the message, `begins` at its
    beginning, where no word of the line's own can stand."""

    verdict: Verdict
    statuses: tuple[int, ...]
    texts: tuple[str, ...] = ("",)
    endpoint: str = ""
    begins: re.Pattern[str] | None = None
    says: Callable[[ErrorBody], bool] | None = None

    def fits(self, endpoint: str, status: int, error: ErrorBody) -> bool:
        return (
            status in self.statuses
            and endpoint.startswith(self.endpoint)
            and any(text in error.message for text in self.texts)
            and (self.begins is None or self.begins.match(error.message) is not None)
            and (self.says is None or self.says(error))
        )


def verdict_of(rules: Iterable[Rule], endpoint: str, status: int, error: ErrorBody) -> Verdict:
    """The verdict of the first rule that fits; a reply that none fits is the line's own fault."""
    fitting = (rule.verdict for rule in rules if rule.fits(endpoint, status, error))
    return next(fitting, Verdict.REFUSED)
