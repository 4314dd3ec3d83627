"""The row of a backend, which several processes write."""

import pytest

from batches import registry
from batches.models import Backend


def test_a_row_that_is_read_again_has_all_that_another_process_wrote(db, backend):
    mine, theirs = registry.report_backend(), registry.own_backend()
    theirs.pause("It does not answer.")
    theirs.now_has_loaded("gemma3:12b")
    theirs.has_counted_slots(4)
    mine.read_again()
    assert {field.attname: getattr(mine, field.attname) for field in mine._meta.concrete_fields} == {
        field.attname: getattr(registry.own_backend(), field.attname) for field in mine._meta.concrete_fields
    }
    assert (mine.is_paused, mine.counted_slots, mine.alone) == (True, 4, None)
    theirs.delete()
    with pytest.raises(Backend.DoesNotExist):
        mine.read_again()
