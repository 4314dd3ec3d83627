"""Result files: what they cost to write, and what becomes of a finalizer that is overtaken."""

from batches import leases, output
from batches.models import Batch, Line, LineState
from files_api.models import File
from tests.conftest import custom_ids, line


def test_a_page_is_read_in_parts_of_bounded_size():
    part = output.PART_BYTES
    assert list(output._parts([(1, 10), (2, 10), (3, 10)])) == [(1, 3)]
    assert list(output._parts([(1, part), (2, 1), (5, part), (6, part)])) == [(1, 1), (2, 5), (6, 6)]


def test_long_replies_are_all_delivered_in_order(create, work, backend, monkeypatch):
    monkeypatch.setattr(output, "PART_BYTES", 300)
    monkeypatch.setattr(output, "PAGE", 4)
    names = [f"id-{number}" for number in range(10)]
    batch = work.run(create([line(name) for name in names])["id"])
    assert custom_ids(work.content(batch["output_file_id"])) == names


def test_a_finalizer_that_lost_its_lease_leaves_nothing(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    work.drive()

    def overtaken():
        """While the first writes, it is declared dead and another finishes."""
        if Batch.objects.get().lease is not None and not File.objects.filter(purpose="batch_output").exists():
            leases.release(Batch.objects.get().lease)
            output.finalize(batch, breathe=lambda: None)

    output.finalize(batch, breathe=overtaken)
    output.tidy(batch, breathe=lambda: None)

    seen = work.batch(batch)
    assert seen["status"] == "completed"
    assert custom_ids(work.content(seen["output_file_id"])) == ["a"]
    # One result, the winner's; the input has no token in its name.
    assert len([path for path in settings.FILES_DIR.rglob("file-*.*") if path.is_file()]) == 1


def test_results_of_a_killed_finalizer_are_removed(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    work.drive()
    output.finalize(batch, breathe=lambda: None)
    delivered = File.objects.get(purpose="batch_output")
    orphan = settings.FILES_DIR / f"{output.stored_name(delivered, '')}.999999"
    orphan.write_text("left behind")
    output.tidy(batch, breathe=lambda: None)
    assert not orphan.exists()
    assert Line.objects.values_list("state", "response").get() == (LineState.SUCCEEDED, "")
    assert custom_ids(work.content(delivered.pk)) == ["a"]
