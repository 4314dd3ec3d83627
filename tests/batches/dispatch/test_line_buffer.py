"""When a drive asks the database for lines."""

from batches import leases, registry
from batches.dispatch.line_buffer import LineBuffer
from tests.conftest import line


def test_lines_that_it_handed_back_are_claimed_again_once_it_asks_for_more(create, work):
    """As when a person came and went: what is in its hands is all there is, until it gives it back."""
    work.validate(create([line("a"), line("b")])["id"])
    lines = LineBuffer(registry.own_backend(), leases.acquire("drive"))
    for _ in range(3):
        lines.refill(4, [])
    assert [each.custom_id for each in lines] == ["a", "b"]
    lines.hand_back()
    lines.refill(4, [])
    assert [each.custom_id for each in lines] == ["a", "b"]
