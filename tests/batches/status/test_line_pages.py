"""Pages of the lines of a batch."""

import pytest
from django.db import connection
from django.utils import timezone

from batches.models import Batch, Line, LineState, Part
from batches.status import line_pages
from batches.status.line_pages import Choice


@pytest.fixture
def batch(db):
    """A batch of two parts with 60 lines in all states; what is sent first stands last in the input."""
    batch = Batch.objects.create(input_file_id="x", endpoint="e", completion_window="7d", expires_at=timezone.now())
    parts = [Part.objects.create(batch=batch, model=model) for model in "ab"]
    Line.objects.bulk_create(
        Line(
            **{"batch": batch, "part": parts[number % 2], "number": number, "custom_id": f"c{number}"},
            **{"offset": 0, "length": 1, "state": LineState(number % 7), "order_key": bytes([(100 - number) // 10])},
            error_code=("e1", "e2", "")[number % 3] if number % 7 == LineState.FAILED else "",
        )
        for number in range(1, 61)
    )
    return batch


def walk(choice, most):
    """All lines page by page, onwards and then back again."""
    pages = [line_pages.page(choice, most=most)]
    assert not pages[0].has_earlier
    while pages[-1].has_later:
        pages.append(line_pages.page(choice, after=pages[-1].lines[-1], most=most))
        assert pages[-1].has_earlier
    back = [pages[-1]]
    while back[-1].has_earlier and back[-1].lines:
        back.append(line_pages.page(choice, before=back[-1].lines[0], most=most))
    there = [line.number for page in pages for line in page.lines]
    assert [line.number for page in back[::-1] for line in page.lines] == there
    return there


SIZES = (1, 7, 60, 100)


def test_each_line_is_on_one_page(batch):
    for most in SIZES:
        assert walk(Choice(batch), most) == list(range(1, 61))


def test_a_state_has_its_lines(batch):
    for state in LineState:
        meant = [number for number in range(1, 61) if number % 7 == state]
        for most in SIZES:
            assert sorted(walk(Choice(batch, state), most)) == meant


def test_a_reason_has_its_lines(batch):
    for reason, is_meant in (
        ("e1", lambda number: number % 7 == 3 and number % 3 == 0),
        ("unknown", lambda number: number % 7 == 3 and number % 3 == 2),
        ("batch_cancelled", lambda number: number % 7 == 4),
        ("batch_expired", lambda number: number % 7 == 5),
        ("nothing_of_ours", lambda number: False),
    ):
        meant = [number for number in range(1, 61) if is_meant(number)]
        for most in SIZES:
            assert walk(Choice(batch, reason=reason), most) == meant


def test_lines_are_found_by_their_custom_id(batch):
    other = Batch.objects.create(input_file_id="x", endpoint="e", completion_window="7d", expires_at=timezone.now())
    part = Part.objects.create(batch=other, model="a")
    Line.objects.create(batch=other, part=part, number=1, custom_id="c7", offset=0, length=1)
    assert {line.batch_id for line in line_pages.with_custom_id("c7")} == {batch.pk, other.pk}
    assert [line.number for line in line_pages.with_custom_id("c7", batch)] == [7]
    assert line_pages.with_custom_id("c") == []


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres plans by the number of rows, which are few here")
def test_no_page_scans_the_lines(batch):
    """Each query of lines goes by an index, and sorts nothing."""
    line = batch.lines.get(number=30)
    choices = [Choice(batch), *(Choice(batch, state) for state in LineState), Choice(batch, reason="e1")]
    plans: list[str] = []

    def explain(execute, sql, params, many, context):
        if sql.startswith("SELECT") and "batches_line" in sql:
            cursor = context["connection"].connection.cursor()
            rows = cursor.execute(f"EXPLAIN QUERY PLAN {sql}".replace("%s", "?"), params).fetchall()
            plans.append("; ".join(row[-1] for row in rows))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        for choice in choices:
            line_pages.page(choice)
            line_pages.page(choice, after=line)
            line_pages.page(choice, before=line)
        line_pages.with_custom_id("c7")
    assert plans
    for plan in plans:
        assert "SEARCH batches_line USING" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
