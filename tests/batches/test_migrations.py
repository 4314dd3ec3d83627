"""Rows of an older database reach the newest schema."""

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone


@pytest.fixture
def schema(transactional_db):
    """Go to a migration of `batches` and get its models; the newest schema is there again afterwards."""

    def go_to(name):
        executor = MigrationExecutor(connection)
        executor.migrate([("batches", name)])
        return MigrationExecutor(connection).loader.project_state([("batches", name)]).apps

    yield go_to
    call_command("migrate", verbosity=0)


@pytest.mark.slow
def test_every_line_gets_the_part_of_its_batch_for_its_model(schema):
    old = schema("0003_paused_models")
    batches = [
        old.get_model("batches", "Batch").objects.create(
            id=name, endpoint="/v1/embeddings", completion_window="24h", input_file_id="f", expires_at=timezone.now()
        )
        for name in ("batch_1", "batch_2")
    ]
    models = ["a", "b", "a"]
    for batch in batches:
        for number, model in enumerate(models, 1):
            batch.lines.create(number=number, custom_id=str(number), offset=0, length=1, model=model)

    new = schema("0004_parts_and_holds")

    lines = new.get_model("batches", "Line").objects.order_by("batch", "number")
    assert list(lines.values_list("part__batch", "part__model")) == [
        (batch.pk, model) for batch in batches for model in models
    ]
    assert new.get_model("batches", "Part").objects.count() == 4


@pytest.mark.slow
def test_replies_that_no_file_has_yet_move_to_rows_of_their_own(schema):
    old = schema("0012_order_of_finishing")
    batch = old.get_model("batches", "Batch").objects.create(
        id="batch_1", endpoint="/v1/embeddings", completion_window="24h", input_file_id="f", expires_at=timezone.now()
    )
    part = batch.parts.create(model="m")
    for number, response in enumerate(['{"a":1}', "", '{"c":"ä"}'], 1):
        batch.lines.create(
            part=part, number=number, custom_id=str(number), offset=0, length=1, response=response, state=2
        )

    new = schema("0013_responses_in_rows_of_their_own")

    responses = new.get_model("batches", "Response").objects.order_by("line")
    assert list(responses.values_list("line__number", "body")) == [(1, '{"a":1}'), (3, '{"c":"ä"}')]
    assert new.get_model("batches", "Line").objects.count() == 3
