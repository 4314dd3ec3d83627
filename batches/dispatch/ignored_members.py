"""What the model server ignores in lines that are sent all the same is told on the batch, once for each member."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db import transaction

from batches.backends.parameters.table import Finding
from batches.models import Batch, Line
from common.database import retrying

CODE = "parameter_ignored"
MOST_TOLD = 50  # members of one batch; a file can name as many as it likes


class IgnoredMembers:
    """Tells each batch of one drive what is ignored in its lines, in `Batch.warnings`. Safe to use beside others."""

    def __init__(self) -> None:
        self._told: defaultdict[str, set[str]] = defaultdict(set)  # batch -> members

    def tell(self, line: Line, findings: Iterable[Finding]) -> None:
        """Have the batch of `line` warn about these, unless this drive has told it before."""
        told = self._told[line.batch_id]
        for finding in findings:
            member = _general(finding.param)
            if member not in told and len(told) < MOST_TOLD:
                told.add(member)
                message = f"{_general(finding.message)} At least line {line.number} has it, and was sent with it."
                retrying(_warn, line.batch_id, {"code": CODE, "param": member, "message": message})


def _general(name: str) -> str:
    """Without the numbers of the places in lists: many lines have the same member at different places."""
    return re.sub(r"\[\d+\]", "[]", name)


def _warn(batch_id: str, warning: dict[str, Any]) -> None:
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=batch_id)
        told = [each.get("param") for each in stored if each["code"] == CODE]
        if warning["param"] not in told and len(told) < MOST_TOLD:
            Batch.objects.filter(pk=batch_id).update(warnings=[*stored, warning])
