"""Failures of a model server, and what the lines pay for them."""

from datetime import timedelta

from django.utils import timezone

from batches.models import Backend, Line, LineState, PausedModel
from tests.conftest import line
from tests.fake_backend import Action, error_body

BOOM = Action(500, error_body("boom"))
NO_ROOM = Action(500, error_body("model requires more system memory (9.9 GiB) than is available"))
UNCHARGED = {(LineState.PENDING, 0, 0)}


def charges(**which):
    return set(Line.objects.filter(**which).values_list("state", "attempts", "backend_crashes"))


def again(work):
    """Another drive, with all waiting over."""
    Line.objects.update(not_before=None)
    Backend.objects.update(resume_at=None)
    PausedModel.objects.update(resume_at=timezone.now() - timedelta(seconds=1))
    work.drive()


def prepared(create, work, names, **body):
    batch = create([line(name, body=body) for name in names])["id"]
    work.validate(batch)
    return batch


def error_lines(work, batch):
    return {each["custom_id"]: each for each in work.content(batch["error_file_id"])}


DOWN = Action(reset=True)
