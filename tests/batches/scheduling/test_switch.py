"""A person's switch holds lines back, by API, admin and command line."""

import io
import logging
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from batches import lifecycle, tasks
from batches.models import Batch, Hold, Status
from batches.scheduling import gate, switch
from batches.status import health
from tests.conftest import line


@pytest.fixture
def woken(monkeypatch):
    """The messages that go out, at the broker's door."""
    sent = []
    for task in (tasks.drive, tasks.validate, tasks.finalize, tasks.tidy):
        monkeypatch.setattr(task, "apply_async", lambda args=(), name=task.name, **_: sent.append(name))
    return sent


# One batch


def test_a_batch_is_paused_and_resumed_again_and_again(api, create):
    batch = create([line("a")])
    for action, paused in (("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        answer = api.post(f"/v1/batches/{batch['id']}/{action}")
        assert (answer.status_code, answer.json()) == (200, batch)
        assert (Batch.objects.get().paused_at is not None) is paused


def test_a_second_pause_keeps_the_time_of_the_first(api, create):
    batch = create([line("a")])
    switch.pause(batch["id"])
    since = Batch.objects.get().paused_at
    switch.pause(batch["id"])
    assert Batch.objects.get().paused_at == since


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_what_sends_no_more_lines_is_refused(api, create, action):
    batch = create([line("a")])
    for status in set(Status) - {Status.VALIDATING, Status.IN_PROGRESS}:
        Batch.objects.update(status=status)
        answer = api.post(f"/v1/batches/{batch['id']}/{action}")
        assert (answer.status_code, answer["x-should-retry"]) == (409, "false")
        assert answer.json()["error"]["message"] == f"Cannot {action} a batch with status '{status}'."
        assert Batch.objects.get().paused_at is None


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_an_unknown_batch_is_a_404(api, action):
    assert api.post(f"/v1/batches/batch_nope/{action}").status_code == 404
    assert api.post(f"/v1/batches/nope/{action}").status_code == 400


def test_a_paused_batch_is_validated_and_can_be_cancelled(work, backend, create):
    batch = create([line("a")])
    switch.pause(batch["id"])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"
    assert switch.is_paused(Batch.objects.get())
    assert work.api.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelling"
    work.finalize(batch["id"])
    assert work.batch(batch["id"])["status"] == "cancelled"
    assert not switch.is_paused(Batch.objects.get())


def test_the_window_goes_on_while_it_is_paused(work, create):
    batch = create([line("a")])
    work.validate(batch["id"])
    switch.pause(batch["id"])
    Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch["id"])
    assert work.batch(batch["id"])["status"] == "expired"


# Everything


def test_all_are_paused_once_and_resumed(api, live_backend):
    first = api.post("/v1/batches/pause").json()
    assert first["object"] == "batches.pause"
    assert first["paused"] is True
    assert abs(first["paused_at"] - timezone.now().timestamp()) < 5
    assert api.post("/v1/batches/pause").json() == first
    assert Hold.objects.count() == 1

    assert "A person paused all batches at" in gate.look(live_backend).reason
    assert health.summary()["status"] == "ok"
    assert health.summary()["reason"] == gate.look(live_backend).reason

    for _ in range(2):
        assert api.post("/v1/batches/resume").json() == {"object": "batches.pause", "paused": False, "paused_at": None}
        assert gate.look(live_backend).reason == ""
    assert health.summary()["reason"] is None


def test_two_pauses_at_the_same_moment_are_one(api, live_backend):
    now = timezone.now()
    for seconds in (5, 0):
        Hold.objects.create(reason="paused", created_at=now - timedelta(seconds=seconds))
    assert switch.pause_all() == now - timedelta(seconds=5)
    assert gate.clock(now - timedelta(seconds=5)) in gate.look(live_backend).reason
    switch.resume_all()
    assert gate.look(live_backend).reason == ""


def test_resuming_all_leaves_a_batch_paused_that_was_paused_by_itself(api, create):
    batch = create([line("a")])
    switch.pause(batch["id"])
    switch.pause_all()
    switch.resume_all()
    assert switch.is_paused(Batch.objects.get())


@pytest.mark.django_db(transaction=True)
def test_resuming_wakes_a_drive(api, create, woken):
    batch = create([line("a")])
    woken.clear()
    api.post(f"/v1/batches/{batch['id']}/pause")
    api.post("/v1/batches/pause")
    assert woken == []
    api.post(f"/v1/batches/{batch['id']}/resume")
    api.post("/v1/batches/resume")
    assert woken == ["batches.tasks.drive"] * 2


# Command line


def run(command, *batch_ids):
    out = io.StringIO()
    call_command(command, *batch_ids, stdout=out)
    return out.getvalue()


def test_the_commands_pause_and_resume_everything(live_backend, woken):
    assert run("pause") == f"Paused all batches, since {gate.clock(switch.pause_all())}.\n"
    assert switch.all_paused_at() is not None
    assert woken == []
    assert run("resume") == "Resumed all batches.\n"
    assert switch.all_paused_at() is None
    assert woken == ["batches.tasks.drive"]


def test_the_commands_pause_and_resume_batches(api, create, woken):
    first, second = (create([line("a")])["id"] for _ in range(2))
    assert run("pause", first, second) == f"Paused {first}, {second}.\n"
    assert Batch.objects.filter(paused_at=None).count() == 0
    assert run("resume", second) == f"Resumed {second}.\n"
    assert Batch.objects.get(paused_at=None).pk == second
    assert not Hold.objects.exists()


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_the_commands_refuse_what_they_cannot_do(api, create, command, woken):
    batch, over = (create([line("a")])["id"] for _ in range(2))
    with pytest.raises(CommandError, match=r"^No batch found with id 'batch_x', 'y'\.$"):
        run(command, batch, "batch_x", "y")
    Batch.objects.filter(pk=over).update(status=Status.COMPLETED)
    with pytest.raises(CommandError, match=rf"^Cannot {command} a batch with status 'completed'\. \({over}\)$"):
        run(command, over, batch)
    assert switch.is_paused(Batch.objects.get(pk=batch)) is (command == "pause")


# Admin


@pytest.fixture
def person(db):
    browser = Client()
    browser.force_login(User.objects.create_superuser("admin"))
    return browser


def test_the_button_of_the_admin_pauses_all_and_resumes_all(person, live_backend, woken):
    switch_ = "/admin/batches/batch/switch/"
    assert "Pause all batches" in person.get("/admin/").content.decode()
    page = person.post(switch_, {"pause": "1"}, follow=True).content.decode()
    assert "Paused all batches." in page
    assert gate.look(live_backend).reason.split(".")[0] in page
    assert "Resume all batches" in page
    page = person.post(switch_, {"resume": "1"}, follow=True).content.decode()
    assert "Pause all batches" in page
    assert gate.look(live_backend).reason == ""
    assert woken == ["batches.tasks.drive"]


def test_who_may_only_look_finds_no_button(live_backend):
    looker = User.objects.create_user("looker", is_staff=True)
    looker.user_permissions.set(Permission.objects.filter(codename="view_batch"))
    browser = Client()
    browser.force_login(looker)
    assert "all batches</button>" not in browser.get("/admin/").content.decode()
    assert browser.post("/admin/batches/batch/switch/", {"pause": "1"}).status_code == 403
    assert browser.get("/admin/batches/batch/switch/").status_code == 405
    assert switch.all_paused_at() is None


def test_the_switch_is_told_in_the_log(api, create):
    (handler,) = (each for each in logging.getLogger().handlers if each.get_name() == "stderr")
    batch = create([line("a")])["id"]
    before, handler.stream = handler.stream, (log := io.StringIO())  # pytest may have closed the old one
    try:
        for _ in range(2):
            switch.pause(batch)
            switch.pause_all()
        switch.resume(batch)
        switch.resume_all()
    finally:
        handler.stream = before
    said = [each.partition("switch: ")[2] for each in log.getvalue().splitlines()]
    assert said == [f"{batch}: paused", "all batches: paused", f"{batch}: resumed", "all batches: resumed"]
