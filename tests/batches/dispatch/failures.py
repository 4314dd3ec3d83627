"""Failures of a model server, and what the lines pay for them."""

import threading
import time
from datetime import timedelta

from django.db import connection
from django.utils import timezone

from batches.dispatch import dispatcher
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


def two_drives(own):
    """Two drives beside each other, again and again with all waiting over, until no line is left. The times at which
    one began: the other knows of it, and makes room for it, within its next look."""
    began = []

    def drive():
        try:
            for _ in range(60):
                Line.objects.update(not_before=None)
                backend = Backend.objects.get(pk=own.pk)
                began.append(time.monotonic())
                dispatcher.Dispatcher(backend, should_stop=lambda: False, wake_control=lambda batch_id: None).run()
                if not Line.objects.all().open().exists():
                    return
                Backend.objects.update(paused_at=None, pause_reason="", resume_at=None)
        finally:
            connection.close()

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return began


def prepared(create, work, names, **body):
    batch = create([line(name, body=body) for name in names])["id"]
    work.validate(batch)
    return batch


def error_lines(work, batch):
    return {each["custom_id"]: each for each in work.content(batch["error_file_id"])}


DOWN = Action(reset=True)
