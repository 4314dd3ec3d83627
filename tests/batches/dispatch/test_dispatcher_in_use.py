"""The loop in ordinary use: what happens around it never lets a busy server run empty, nor makes it spin."""

import itertools
import threading
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import leases, lifecycle, registry, tasks
from batches.models import Backend, Batch, Lease, Line, LineState, PausedModel
from batches.scheduling import persons, turns
from tests import fake_backend
from tests.conftest import line
from tests.fake_backend import MODEL, TRIAL, Action, error_body


@pytest.fixture
def drive(work, monkeypatch):
    """Run the task `drive`; meanwhile call `look` once a second, in the thread that may touch the database."""

    def drive(look=lambda: None, *, in_flight=2):
        Backend.objects.filter(pk=registry.report_backend().pk).update(concurrency_limit=in_flight)
        close_finished = lifecycle.close_finished

        def looked(*args):
            look()
            close_finished(*args)

        monkeypatch.setattr(lifecycle, "close_finished", looked)
        tasks.drive()
        monkeypatch.setattr(lifecycle, "close_finished", close_finished)

    return drive


def span(backend, key):
    """When the request of this key arrived and was left, the last time."""
    return next((seen.at, seen.left) for seen in reversed(backend.seen) if seen.key == key)


def arrived_during(backend, key):
    """The keys of the requests that arrived while that of `key` was being answered."""
    began, ended = span(backend, key)
    return [seen.key for seen in backend.seen if began < seen.at < ended]


@pytest.mark.slow
def test_a_new_batch_for_the_loaded_model_joins_at_once(create, work, backend, drive, monkeypatch):
    monkeypatch.setattr(turns, "FIRST_TURN_WITHIN_S", 0.5)
    backend.delay_s = 0.1
    backend.on("slow", Action(delay_s=6))
    work.validate(create([line(each) for each in ["slow", *map(str, range(100))]])["id"])
    second = []

    def look():
        if backend.seen and not second:
            second.append(create([line(f"new-{number}") for number in range(5)])["id"])
            work.validate(second[0])

    drive(look)
    meanwhile = arrived_during(backend, "slow")
    assert {f"new-{number}" for number in range(5)} <= set(meanwhile)
    times = [seen.at for seen in backend.seen if seen.key in meanwhile]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 1
    assert backend.events.count(f"describe {MODEL}") == 1  # what the server says of a model is said of all its lines
    assert backend.loads == [MODEL]


def hold_for_a_second(backend, settings):
    """A person who comes once a line is being answered, and stays for a second."""
    settings.INTERACTIVE_HOLD_S = 0.2
    came = []

    def look():
        if len(backend.seen) >= 3 and not came:
            came.append(persons.Person(registry.own_backend()))
        elif len(came) == 1:
            came[0].leave()
            came.append(time.monotonic())

    return look, came


@pytest.mark.slow
def test_lines_go_on_at_once_after_a_person_if_the_model_is_still_loaded(create, work, backend, drive, settings):
    backend.delay_s = 0.1
    backend.on("slow", Action(delay_s=6))
    work.validate(create([line(each) for each in ["slow", *map(str, range(60))]])["id"])
    look, came = hold_for_a_second(backend, settings)

    drive(look)

    left_at = came[1]
    during_slow = [seen.at for seen in backend.seen if seen.key in arrived_during(backend, "slow")]
    assert any(at > left_at for at in during_slow)
    assert min(at for at in during_slow if at > left_at) < left_at + 1.5
    assert backend.loads == [MODEL]


@pytest.mark.slow
def test_a_model_whose_place_a_person_took_is_loaded_again(create, work, backend, drive, settings):
    backend.delay_s = 0.1
    work.validate(create([line(str(number)) for number in range(60)])["id"])
    look, came = hold_for_a_second(backend, settings)

    def look_and_swap():
        look()
        if len(came) == 2:
            backend.loaded = ["other:1b"]
            came.append("swapped")

    drive(look_and_swap)

    assert backend.loads == [MODEL, MODEL]
    assert backend.unloads == []  # the other one is the person's
    assert Batch.objects.get().completed == 60


@pytest.mark.slow
def test_an_input_file_that_cannot_be_read_stalls_its_batch_and_no_other(
    create, work, backend, drive, settings, caplog
):
    backend.delay_s = 0.05
    backend.on("slow", Action(delay_s=5))
    work.validate(create([line("slow"), *(line(str(number)) for number in range(40))])["id"])
    path = next(path for path in settings.FILES_DIR.rglob("file-*"))
    other = create([line(f"bad-{number}") for number in range(3000)])["id"]
    work.validate(other)
    bad = next(each for each in settings.FILES_DIR.rglob("file-*") if each != path)
    bad.rename(bad.with_suffix(".kept"))
    bad.mkdir()
    started = time.monotonic()

    drive()

    assert Batch.objects.get(pk=other).stall_reason.startswith("Its input file cannot be read now (Is a directory).")
    assert sum("cannot be read" in record.getMessage() for record in caplog.records) == 1
    assert Line.objects.filter(batch=other, state=LineState.PENDING, attempts=0, not_before=None).count() == 3000
    assert Batch.objects.exclude(pk=other).get().completed == 41
    # Tried again after a pause that grows, while the slow call was in flight.
    assert 1 <= Batch.objects.get(pk=other).stalls <= 1 + (time.monotonic() - started) / lifecycle.FIRST_STALL_S

    bad.rmdir()
    bad.with_suffix(".kept").rename(bad)
    Batch.objects.update(retry_at=None)
    drive(in_flight=9)
    seen = Batch.objects.get(pk=other)
    assert (seen.completed, seen.stall_reason, seen.stalls) == (3000, "", 0)


def test_a_model_that_recovers_is_loaded_as_the_first_time(create, work, backend, drive):
    """With our time to stay, and after the other model of ours was taken off the card."""
    backend.models = [MODEL, "b:1b"]
    no_room = error_body("model requires more system memory (9.9 GiB) than is available")
    backend.on_load.extend([Action(500, no_room), Action()])
    work.validate(create([line("a1"), line("a2"), line("b", body={"model": "b:1b"})])["id"])

    drive()
    assert "cannot load" in PausedModel.objects.get().reason
    assert [event for event in backend.events if "describe" not in event] == [f"load {MODEL}", "load b:1b", "b"]

    backend.events.clear()
    drive()  # too early: what the drive before has loaded is not forgotten
    assert backend.events == []
    PausedModel.objects.update(resume_at=timezone.now() - timedelta(seconds=1))
    drive()
    assert backend.events[:2] == ["unload b:1b", f"load {MODEL}"]
    assert backend.events[2] == TRIAL
    assert Batch.objects.get().completed == 3


@pytest.mark.slow
def test_the_order_to_stop_is_seen_while_a_model_is_loaded(create, work, backend, monkeypatch):
    """A question is a call like any other: the loop goes on beside it."""
    backend.on_load.append(Action(delay_s=30))
    work.validate(create([line("a")])["id"])
    registry.report_backend()
    timer = threading.Timer(1.5, setattr, (tasks.shutdown, "value", 1))
    timer.start()
    started = time.monotonic()
    monkeypatch.setattr("django.conf.settings.SHUTDOWN_GRACE_S", 0.5)
    try:
        tasks.drive()
    finally:
        timer.join()
        tasks.shutdown.value = 0
    assert time.monotonic() - started < 6
    assert Line.objects.values_list("state", "attempts").get() == (LineState.PENDING, 0)


@pytest.mark.slow
def test_a_model_that_is_loaded_answers_a_line_before_another_is(create, work, backend, drive, settings):
    """Other models have waited too long meanwhile, and loading takes several looks."""
    settings.MODEL_PATIENCE_S = 0.01
    backend.models = [MODEL, "b:1b", "c:1b"]
    backend.on_load.extend([Action(), Action(delay_s=1.5), Action(delay_s=1.5), Action(delay_s=1.5)])
    for model in backend.models:
        work.validate(create([line(f"{model}-{number}", body={"model": model}) for number in range(100)])["id"])
    drive()
    events = [event for event in backend.events if "describe" not in event]
    assert all("load" not in after for before, after in itertools.pairwise(events) if before.startswith("load")), events


@pytest.mark.slow
def test_a_model_whose_process_died_is_loaded_before_its_next_line(create, work, backend, drive):
    """The server lists it as loaded until somebody asks it something."""
    backend.on("a", Action(reset=True, delay_s=0.3))
    backend.on("slow", Action(delay_s=4))  # the same drive sends `a` again
    work.validate(create([line("slow"), line("a")])["id"])
    drive()
    assert backend.loaded == [MODEL]
    events = [event for event in backend.events if "describe" not in event]
    assert events[0] == f"load {MODEL}"
    assert events[3:] == [f"load {MODEL}", "a"]
    assert Batch.objects.get().completed == 2


def longest_gap(backend):
    """Between two requests that arrived one after the other, in seconds."""
    return max(later - earlier for earlier, later in itertools.pairwise(sorted(seen.at for seen in backend.seen)))


@pytest.mark.slow
def test_a_server_that_refused_one_call_and_answers_others_gets_more(create, work, backend):
    work.in_flight = 8
    backend.delay_s = 0.2
    backend.on("id-0", Action(429, b"busy", headers={"Retry-After": "10"}))
    work.validate(create([line(f"id-{number}") for number in range(60)])["id"])
    work.drive()
    assert longest_gap(backend) < 2


@pytest.mark.slow
def test_a_failure_that_waits_for_a_trial_waits_for_no_other_call(create, work, backend):
    """Nor do the other lines."""
    work.in_flight = 4
    backend.delay_s = 0.1
    backend.on("slow", Action(delay_s=5))
    backend.always("bad", Action(500, error_body("model requires more system memory (9.9 GiB) than is available")))
    work.validate(create([line(each) for each in ["slow", "bad", *map(str, range(60))]])["id"])
    work.drive()
    assert longest_gap(backend) < 4
    assert TRIAL in arrived_during(backend, "slow")


@pytest.mark.slow
def test_a_refusal_that_passes_is_not_charged_to_the_line(create, work, backend):
    """A proxy says 403 to everything for two seconds, while a long call is being answered."""
    backend.on("slow", Action(delay_s=4))
    for key in ("a", TRIAL):
        backend.always(key, Action(403, b""))
    timer = threading.Timer(2.0, backend.forget)
    timer.start()
    work.validate(create([line(each) for each in ["slow", "a", "b", "c"]])["id"])
    work.drive()
    timer.join()
    assert Line.objects.get(custom_id="a").state == LineState.PENDING
    assert Backend.objects.get().is_paused


@pytest.mark.slow
def test_a_model_that_the_server_never_lists_is_not_loaded_again_and_again(create, work, backend, drive, monkeypatch):
    backend.delay_s = 0.1
    backend.loaded = []
    monkeypatch.setattr(backend, "has_loaded", lambda model: None)
    work.validate(create([line(str(number)) for number in range(150)])["id"])
    drive(registry.report_backend)
    assert backend.loads == [MODEL, MODEL]  # it may have gone once
    assert Batch.objects.get().completed == 150


@pytest.mark.slow
def test_a_trial_that_passes_while_a_person_is_there_ends_the_pause(create, work, backend, drive, settings):
    settings.INTERACTIVE_HOLD_S = 0.2
    work.validate(create([line("a")])["id"])
    own = registry.report_backend()
    due = {"reason": "x", "resume_at": timezone.now()}
    PausedModel.objects.create(backend=own, endpoint="/v1/chat/completions", model=MODEL, **due)
    backend.always(TRIAL, Action(delay_s=3))
    came = []

    def look():
        if TRIAL in backend.arrived() and not came:
            came.extend([persons.Person(own), time.monotonic()])
        elif len(came) == 2 and time.monotonic() > came[1] + 4:
            came[0].leave()
            came.append("left")

    drive(look)
    assert backend.arrived() == [TRIAL, "a"]
    assert not PausedModel.objects.exists()


@pytest.mark.slow
def test_a_trial_that_is_lost_with_the_lease_is_left_to_the_next_drive(create, work, backend, monkeypatch):
    work.validate(create([line("a")])["id"])
    due = {"reason": "x", "resume_at": timezone.now()}
    own = registry.report_backend()
    PausedModel.objects.create(backend=own, endpoint="/v1/chat/completions", model=MODEL, **due)
    backend.on_load.append(Action(delay_s=8))
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 1.0)

    def look():
        if backend.loads:
            Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        return False

    work.drive(should_stop=look)
    assert PausedModel.objects.get().resume_at < timezone.now() + timedelta(seconds=5)


@pytest.mark.slow
def test_a_server_that_drips_its_list_does_not_keep_a_drive_that_is_to_stop(
    create, work, backend, monkeypatch, settings
):
    settings.SHUTDOWN_GRACE_S = 0.5
    answer = fake_backend._Handler.do_GET
    dripping = []

    def drip(self):
        if self.path == "/api/ps" and dripping:
            self._drip(None, b'{"models": []}' + b" " * 60, 0.5)
        else:
            answer(self)

    monkeypatch.setattr(fake_backend._Handler, "do_GET", drip)
    work.validate(create([line("a")])["id"])
    started = time.monotonic()

    def look():
        dripping.append(True)
        return time.monotonic() > started + 2

    work.drive(should_stop=look)
    assert time.monotonic() - started < 14
