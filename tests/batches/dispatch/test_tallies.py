"""What a drive counts for /metrics."""

import pytest

from batches import leases
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.dispatch.tallies import Tallies, source_of
from batches.models import Figures, Line, LineState, Part
from batches.models.figures import BOUNDS

ANSWERED = Reply(Verdict.ANSWERED, 200, "{}", usage=Usage(output_tokens=7))
REFUSED = Reply(Verdict.REFUSED, 400, "{}", code="unsupported", message="No.")


@pytest.fixture
def counted(live_backend):
    """What the backend's row has, after these calls: (model, reply, state, was it sent)."""
    tallies = Tallies(live_backend, leases.acquire("test", backend=live_backend))

    def count(*calls):
        for model, reply, state, was_sent in calls:
            call = Call(Line(part=Part(model=model)), "", {}, 1.0, reply=reply)
            if was_sent:
                call.finished, call.duration_s = call.started + 3, 3.0
            tallies.note(call, state)
        tallies.flush(0)
        return Figures.objects.get(pk=source_of(live_backend)).values

    return count


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (ANSWERED, LineState.SUCCEEDED),  # recalled
        (REFUSED, LineState.FAILED),  # by the table of parameters
        (Reply(Verdict.REFUSED, code="input_unreadable", message="Gone."), LineState.FAILED),
    ],
)
def test_a_line_that_no_server_saw_is_in_no_histogram(counted, reply, state):
    values = counted(("m", reply, state, False))
    assert not {"line_seconds", "line_seconds_sum", "line_output_tokens", "line_output_tokens_sum"} & set(values)
    assert values.get("failures", {}) == ({reply.code: 1} if state is LineState.FAILED else {})
    values = counted(("m", ANSWERED, LineState.SUCCEEDED, True), ("m", reply, state, False))
    assert values["line_seconds"] == {"m\t5.0": 1}
    assert values["line_seconds_sum"] == {"m": 3.0}
    assert values["line_output_tokens_sum"] == {"m": 7}


def test_buckets_and_sums_have_the_same_names(counted, monkeypatch):
    """Beyond the bound, a model without an answer takes no name of one that has some."""
    monkeypatch.setattr(Figures, "MOST_LABELS", 2)
    for number in range(5):
        fails = number % 2 == 0
        reply, state = (REFUSED, LineState.FAILED) if fails else (ANSWERED, LineState.SUCCEEDED)
        values = counted((f"m{number}", reply, state, True))
    for name in BOUNDS:
        assert {key.partition("\t")[0] for key in values[name]} == set(values[f"{name}_sum"])
    assert values["line_output_tokens_sum"] == {"m1": 7, "m3": 7}
