"""Whose turn it is, of what waits; and that the drive keeps to it, against a model server."""

from collections import Counter
from datetime import timedelta
from itertools import groupby, pairwise
from types import SimpleNamespace

import pytest
from django.utils import timezone

from batches import registry
from batches.models import Backend, Batch, Line, LineState, Part, PausedModel, Priority
from batches.scheduling import turns
from batches.scheduling.turns import FIRST_TURN_WITHIN_S, TURN_S, Turn, Which, choose
from common.models import Owner
from tests.conftest import line
from tests.fake_backend import TRIAL, Action, error_body

NOW = timezone.now()


@pytest.fixture
def work(work):
    """Two calls that are sent at once may arrive in either order; here the order counts."""
    work.in_flight = 1
    return work


def ago(minutes):
    return NOW - timedelta(minutes=minutes)


def part(pk, model="m", *, turn=None, created=60, priority=Priority.NORMAL, owner=1, lasts_s=float("inf")):
    """A part that waits; `turn` and `created` in minutes ago."""
    batch = SimpleNamespace(priority=priority, created_at=ago(created), in_progress_at=ago(created), owner_id=owner)
    turn_at = None if turn is None else ago(turn)
    return SimpleNamespace(pk=pk, served_model=model, batch=batch, turn_at=turn_at, left_s=lasts_s)


class On(Turn):
    """A turn that has been on for so long, with a border ahead or not."""

    def __init__(self, part, age_s):
        super().__init__(part)
        self.began -= age_s


def chosen(*parts, loaded="m", stayed_s=float("inf"), turn=None, at_border=True, base_of=str, owners_turns=None):
    found = choose(
        parts,
        loaded=loaded,
        stayed_s=stayed_s,
        turn=turn,
        is_at_border=lambda _: at_border,
        now=NOW,
        base_of=base_of,
        owners_turns=owners_turns or {},
    )
    return found and found.pk


def test_nothing_waits():
    assert chosen() is None


def test_the_oldest_goes_first_among_those_that_had_no_turn():
    assert chosen(part(1, created=5), part(2, created=50)) == 2


def test_the_loaded_model_is_drained_first():
    assert chosen(part(1, "other", created=9), part(2, "m", created=1)) == 2
    assert chosen(part(1, "other", created=9), part(2, "m", turn=0)) == 2
    assert chosen(part(1, "other", created=9), loaded="m") == 1


def test_models_that_are_loaded_together_take_turns_as_one():
    base_of = {"m": "m", "lora-a": "m", "lora-b": "m", "other": "other"}.get
    assert chosen(part(1, "lora-a", turn=1), part(2, "lora-b", turn=2), base_of=base_of) == 2
    assert chosen(part(1, "other", created=9), part(2, "lora-b", turn=1), loaded="lora-a", base_of=base_of) == 2
    turn = On(part(1, "lora-a"), TURN_S + 1)
    assert chosen(part(1, "lora-a", turn=1), part(2, "m", turn=2), turn=turn, base_of=base_of) == 2
    # Without that they would be models of their own, and the loaded one is drained first.
    assert chosen(part(1, "m", turn=1), part(2, "lora-b", turn=2), loaded="m") == 1


def test_without_a_loaded_model_the_one_that_waits_longest_is_loaded():
    assert chosen(part(1, "a", created=5), part(2, "b", created=9), loaded="") == 2
    assert chosen(part(1, "a", turn=5), part(2, "b", turn=9), loaded="") == 2


def test_no_model_waits_for_ever(settings):
    settings.MODEL_PATIENCE_S = 600
    assert chosen(part(1, "other", created=9.9), part(2, "m", turn=0)) == 2
    assert chosen(part(1, "other", created=10.1), part(2, "m", turn=0)) == 1
    # It waits since the last turn of any of its parts.
    assert chosen(part(1, "other", created=50), part(3, "other", turn=2), part(2, "m", turn=0)) == 2
    assert chosen(part(1, "a", created=12), part(3, "b", created=11), part(2, "m", turn=0)) == 1


def test_of_many_models_each_stays_for_its_share_of_the_patience(settings):
    settings.MODEL_PATIENCE_S = 600
    waiting = [part(1, "m", turn=0), part(2, "a", turn=11), part(3, "b", turn=12)]
    assert chosen(*waiting, stayed_s=199) == 1
    assert chosen(*waiting, stayed_s=201) == 3
    assert chosen(*waiting[1:], stayed_s=0) == 3  # it has nothing left


def test_a_turn_that_was_stamped_before_the_clock_went_back_keeps_nobody_waiting():
    current = part(1, turn=0.5)
    assert chosen(current, part(2, turn=-120), part(3, turn=2), turn=On(current, TURN_S + 1)) == 2
    assert chosen(part(1, "m", turn=0), part(2, "other", turn=-120)) == 2


def test_a_turn_lasts():
    current = part(1, turn=0.2)
    assert chosen(current, part(2, turn=5), turn=On(current, TURN_S - 1)) == 1
    assert chosen(current, part(2, turn=5), turn=On(current, TURN_S + 1)) == 2
    assert chosen(current, turn=On(current, TURN_S + 1)) == 1


def test_one_that_had_none_yet_waits_seconds_at_most():
    current = part(1, turn=0.2)
    assert chosen(current, part(2), turn=On(current, FIRST_TURN_WITHIN_S - 1)) == 1
    assert chosen(current, part(2), turn=On(current, FIRST_TURN_WITHIN_S + 1)) == 2


def test_ever_new_ones_do_not_keep_an_old_one_waiting_for_ever():
    assert chosen(part(1, turn=0.9), part(2), part(3)) == 2
    assert chosen(part(1, turn=1.1), part(2), part(3)) == 1
    current = part(1, turn=1.1)
    assert chosen(current, part(2), turn=On(current, FIRST_TURN_WITHIN_S + 1)) == 2


def test_a_turn_that_is_over_ends_where_the_prompt_changes():
    current = part(1, turn=0.2)

    def ends(age_s, other):
        return chosen(current, other, turn=On(current, age_s), at_border=False) == 2

    assert not ends(TURN_S + 1, part(2, turn=5))
    assert ends(TURN_S + 11, part(2, turn=5))
    assert ends(FIRST_TURN_WITHIN_S + 1, part(2))


def test_who_waits_longest_is_next():
    current = part(1, turn=0.5)
    assert chosen(current, part(2, turn=1), part(3, turn=2), turn=On(current, TURN_S + 1)) == 3


def test_priority_goes_before_everything():
    low, high = Priority.LOW, Priority.HIGH
    assert chosen(part(1, "other", created=1, priority=high), part(2, "m", turn=9)) == 1
    assert chosen(part(1, created=90, priority=low), part(2, created=1)) == 2
    current = part(1, turn=0.1)
    assert chosen(current, part(2, priority=high), turn=On(current, 1)) == 2
    assert chosen(part(1, created=90, priority=low)) == 1


# Owners


def test_owners_take_turns_and_then_the_parts_of_each():
    waiting = [part(1, turn=3), part(2, turn=9), part(3, turn=2, owner=2)]
    assert chosen(*waiting, owners_turns={1: ago(1), 2: ago(2)}) == 3
    assert chosen(*waiting, owners_turns={1: ago(2), 2: ago(1)}) == 2


def test_an_owner_who_had_no_turn_yet_comes_first():
    waiting = [part(1, turn=9), part(2, created=5, owner=2), part(3, created=8, owner=3)]
    assert chosen(*waiting, owners_turns={1: ago(9)}) == 3
    assert chosen(*waiting, owners_turns={1: ago(9), 2: ago(-120), 3: ago(0)}) == 2  # its clock went back


def test_a_priority_is_a_word_between_the_batches_of_one_owner():
    high, low = Priority.HIGH, Priority.LOW
    assert chosen(part(1, turn=1, priority=high), part(2, turn=2, priority=low, owner=2), owners_turns={1: ago(1)}) == 2
    current = part(2, turn=0.1, priority=low, owner=2)
    assert chosen(part(1, priority=high), current, turn=On(current, 1), owners_turns={2: ago(0.1)}) == 2
    assert chosen(part(1, turn=1, priority=high), part(2, turn=2, priority=low), owners_turns={1: ago(1)}) == 1


def time_of_owners(parts, *, hours=1.0, arriving=lambda second, waiting: []):
    """Seconds in which lines of each owner were sent."""
    had, owners_turns, turn, age_s, loaded, stayed_s = Counter(), {}, None, 0, "m", 0
    for second in range(int(hours * 3600)):
        now = NOW + timedelta(seconds=second)
        parts = [each for each in parts if each.left_s > 0]
        parts += arriving(second, parts)
        found = choose(
            parts,
            loaded=loaded,
            stayed_s=stayed_s,
            turn=turn and On(turn, age_s),
            is_at_border=lambda _: True,
            now=now,
            owners_turns=owners_turns,
        )
        if found is not turn or age_s >= TURN_S:
            turn, age_s = found, 0
            found.turn_at = owners_turns[found.batch.owner_id] = now
        if found.served_model != loaded:
            loaded, stayed_s = found.served_model, 0
        had[found.batch.owner_id] += 1
        found.left_s -= 1
        age_s, stayed_s = age_s + 1, stayed_s + 1
    return had


def test_twenty_batches_of_one_owner_take_no_more_than_one_of_another():
    had = time_of_owners([*(part(number) for number in range(20)), part(99, owner=2)])
    assert had[1] == pytest.approx(had[2], rel=0.1)


def test_ever_new_batches_of_one_owner_take_no_more_either():
    def arriving(second, waiting):
        return [part(1000 + second, created=-second / 60)] if second % 10 == 0 else []

    had = time_of_owners([part(99, turn=1, owner=2)], arriving=arriving)
    assert had[1] == pytest.approx(had[2], rel=0.1)


@pytest.mark.parametrize("others", [1, 2])
def test_a_new_batch_in_each_turn_of_another_takes_no_more_either(others):
    """Each is over in one turn, so that none waits meanwhile."""
    lasting = [part(90 + each, turn=1, owner=2 + each) for each in range(others)]
    new = iter(range(100, 10_000))

    def arriving(second, waiting):
        is_idle = all(each.batch.owner_id != 1 for each in waiting)
        return [part(next(new), created=-second / 60, lasts_s=TURN_S)] if is_idle else []

    had = time_of_owners(lasting, arriving=arriving)
    for each in lasting:
        assert had[1] == pytest.approx(had[each.batch.owner_id], rel=0.1)


def test_an_owner_who_had_no_turn_lately_waits_seconds_at_most():
    current = part(1, turn=0.2)
    turn = On(current, FIRST_TURN_WITHIN_S + 1)
    new = part(2, owner=2, created=0)
    assert chosen(current, new, turn=turn, owners_turns={1: ago(0.2), 2: None}) == 2
    assert chosen(current, new, turn=turn, owners_turns={1: ago(0.2), 2: ago(11)}) == 2
    assert chosen(current, new, turn=turn, owners_turns={1: ago(0.2), 2: ago(1)}) == 1
    own = part(3, created=0)
    assert chosen(current, own, turn=turn, owners_turns={}) == 3
    assert chosen(current, own, part(2, owner=2, turn=1), turn=turn, owners_turns={1: ago(0.2), 2: ago(1)}) == 1


def test_many_models_of_one_owner_take_no_more_either(settings):
    settings.MODEL_PATIENCE_S = 600
    parts = [*(part(number, f"m{number}") for number in range(9)), part(99, "m", owner=2)]
    had = time_of_owners(parts, hours=6)
    assert had[1] == pytest.approx(had[2], rel=0.2)


def test_owners_who_use_one_model_share_its_time(settings):
    settings.MODEL_PATIENCE_S = 600
    had = time_of_owners([part(1, "m"), part(2, "m", owner=2), part(3, "other", owner=2)], hours=6)
    assert had[1] == pytest.approx(had[2] / 2, rel=0.5)  # "m" stays for three quarters, of which each has half


# With rows


def system(text, custom_id, model="gemma3:12b"):
    messages = [{"role": "system", "content": text * 100}, {"role": "user", "content": custom_id}]
    return line(custom_id, body={"messages": messages, "model": model})


def test_lines_that_begin_alike_are_sent_one_after_the_other_and_come_out_in_input_order(create, work, backend):
    prompts = ["Rate the profile. ", "Translate it. ", "Name the colour. "]
    lines = [system(prompts[number % 3], f"{number % 3}-{number}") for number in range(30)]
    batch = work.run(create(lines)["id"])
    groups = [key[0] for key in backend.arrived()]
    assert len([key for key, _ in groupby(groups)]) == 3
    output = [each["custom_id"] for each in work.content(batch["output_file_id"])]
    assert output == [each["custom_id"] for each in lines]


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.slow
def test_models_are_loaded_once_each_across_batches(create, work, backend, in_flight):
    work.in_flight = in_flight
    backend.delay_s = 0.2
    backend.on_load.extend([Action(delay_s=1.5)] * 3)  # the drive looks around meanwhile
    backend.models = models = ["gemma3:12b", "b:1b", "c:1b"]
    batches = [
        create([line(f"{batch}{number}", body={"model": models[number % 3]}) for number in range(12)])["id"]
        for batch in "xy"
    ]
    for batch in batches:
        work.validate(batch)
    work.drive()
    assert sorted(backend.loads) == sorted(models)
    assert backend.loads[0] == "gemma3:12b"  # the server had it already
    assert backend.unloads == backend.loads[:2]  # each before the next one needs its room
    assert set(Batch.objects.values_list("status", flat=True)) == {"finalizing"}


@pytest.mark.slow
def test_a_small_batch_does_not_wait_for_a_large_one(create, work, backend, monkeypatch):
    monkeypatch.setattr(turns, "FIRST_TURN_WITHIN_S", 0.5)
    backend.delay_s = 0.05
    large = create([line(f"large-{number}") for number in range(100)])["id"]
    work.validate(large)
    small = []

    def look():
        if len(backend.arrived()) > 5 and not small:
            small.append(create([line(f"small-{number}") for number in range(5)])["id"])
            work.validate(small[0])
        return False

    work.drive(should_stop=look)
    arrived = backend.arrived()
    assert arrived.index("small-4") - arrived.index("small-0") == 4
    assert arrived.index("small-4") < 80
    assert len(arrived) == 105


@pytest.mark.slow
def test_the_last_lines_of_a_model_are_sent_before_the_next_is_loaded(create, work, backend):
    backend.delay_s = 1.5  # the drive looks around while the last one is claimed
    backend.models = ["gemma3:12b", "b:1b"]
    lines = [line(f"{model}{number}", body={"model": model}) for number in range(2) for model in backend.models]
    work.validate(create(lines)["id"])
    work.drive()
    assert [key[0] for key in backend.arrived()] == ["g", "g", "b", "b"]
    assert len(backend.loads) == 2


@pytest.mark.slow
def test_what_was_claimed_for_another_keeps_nobody_waiting(create, work, backend):
    """Fast answers are claimed in large groups; then they take long, and somebody is in a hurry."""
    work.in_flight = 8
    backend.delay_s = 0.005
    large = create([line(f"large{number}") for number in range(4000)])["id"]
    urgent = create([line("urgent")], metadata={"priority": "high"})["id"]
    work.validate(large)
    held = []

    def look():
        if backend.delay_s < 1 and len(backend.seen) > 200:
            backend.delay_s = 1.5
            work.validate(urgent)
        elif backend.delay_s > 1:
            held.append(Line.objects.filter(batch=large, state=LineState.RUNNING).count())
        return "urgent" in backend.arrived()

    work.drive(should_stop=look)
    assert held[0] == 8  # what is in flight


def test_a_batch_that_a_person_paused_is_passed_over(create, work, backend):
    first, second = (create([line(each)])["id"] for each in "ab")
    for batch in (first, second):
        work.validate(batch)
    Batch.objects.filter(pk=first).update(paused_at=timezone.now())
    work.drive()
    assert backend.arrived() == ["b"]
    assert not turns.with_work([registry.own_backend()])
    Batch.objects.update(paused_at=None)
    assert turns.with_work([registry.own_backend()])


@pytest.mark.slow
def test_a_pause_in_the_middle_lets_what_is_in_flight_finish(create, work, backend):
    backend.delay_s = 0.3
    batch = create([line(f"id-{number}") for number in range(20)])["id"]
    work.validate(batch)

    def look():
        if backend.arrived():
            Batch.objects.update(paused_at=timezone.now())
        return False

    work.drive(should_stop=look)
    done = Batch.objects.get().completed
    assert 0 < done == len(backend.arrived()) < 20
    assert not Line.objects.exclude(lease=None).exists()


@pytest.fixture
def elsewhere(backend):
    """Another live backend, which lists `theirs:1b`."""
    own = registry.report_backend()
    now = timezone.now()
    listed = [{"id": "theirs:1b", "created": 0, "owned_by": "x"}]
    other = {"kind": "ollama", "worker_seen_at": now, "seen_at": now, "listed": listed}
    return Backend.objects.create(name="other", url="http://other", **other) and own


def test_a_model_that_only_another_backend_has_waits_for_that_one(create, work, backend, elsewhere):
    work.validate(create([line("a"), line("b", body={"model": "theirs:1b"})])["id"])
    work.drive()
    assert backend.arrived() == ["a"]
    gone = timezone.now() - timedelta(minutes=5)
    Backend.objects.filter(name="other").update(worker_seen_at=gone)
    # Nobody else has it any more: here it fails with its reason.
    assert turns.with_work([registry.own_backend()])


def test_a_model_that_is_removed_here_is_left_to_a_backend_that_has_it(create, work, backend, elsewhere, settings):
    """Our list of its models is some seconds old, so a line is sent once before that shows."""
    backend.models = ["gemma3:12b", "theirs:1b"]
    batch = create([line(each, body={"model": "theirs:1b"}) for each in "ab"])["id"]
    work.validate(batch)
    for key in "ab":
        backend.always(key, Action(404, error_body("model 'theirs:1b' not found")))

    def remove():
        backend.models = ["gemma3:12b"]
        return False

    work.drive(should_stop=remove)
    assert "a" in backend.arrived()
    assert set(Line.objects.values_list("state", "attempts")) == {(LineState.PENDING, 0)}
    Backend.objects.filter(name="other").delete()
    settings.MODEL_MISSING_PATIENCE_S = 0
    assert work.run(batch)["request_counts"] == {"total": 2, "completed": 0, "failed": 2}


def test_a_model_that_cannot_be_loaded_here_is_not_given_up_while_another_backend_has_it(
    create, work, backend, elsewhere
):
    backend.models = ["theirs:1b"]
    backend.on_load.extend([Action(500, error_body("model requires more system memory"))] * 2)
    batch = create([line("a", body={"model": "theirs:1b"})])["id"]
    work.validate(batch)
    work.drive()
    hour_ago = timezone.now() - timedelta(minutes=61)
    PausedModel.objects.update(since=hour_ago, resume_at=hour_ago)
    for key in ("a", TRIAL):
        backend.always(key, Action(500, error_body("model requires more system memory")))
    work.drive()
    assert Line.objects.get().state == LineState.PENDING
    assert PausedModel.objects.exists()
    Backend.objects.filter(name="other").delete()
    PausedModel.objects.update(since=hour_ago, resume_at=hour_ago)
    work.drive()
    work.fail_lines(batch)
    assert Line.objects.get().state == LineState.FAILED


def test_a_turn_ends_though_all_lines_begin_alike(create, work, backend):
    """One rubric over two batches: there is no border to wait for."""
    for name in "ab":
        work.validate(create([system("Rate it. ", f"{name}-{number}") for number in range(20)])["id"])
    own = registry.report_backend()
    parts, turn = [], None
    for _ in range(30):
        following = turns.next_turn(own, turn)
        if following is not turn:
            following.claimed(following.lines().first())
            parts.append(following.part.pk)
        turn = following
        turn.began -= 5  # five seconds later
    assert 3 < len(parts) < 7  # in 150 seconds
    assert all(before != after for before, after in pairwise(parts))


def test_the_turn_after_that_of_one_owner_is_anothers(create, work, backend, api):
    """Those of the first have a higher priority, and came before."""
    for number in range(3):
        work.validate(create([line(f"theirs-{number}")], metadata={"priority": "high"})["id"])
    late = Owner.objects.create(name="late")
    own = create([line("own")])["id"]
    Batch.objects.filter(pk=own).update(owner=late)
    work.validate(own)
    backend_row = registry.report_backend()
    assert [part.batch.owner_id for part in turns.order(backend_row, 4)] == [1, late.pk, 1, 1]
    first = turns.next_turn(backend_row, None)
    first.claimed(first.lines().first())
    Line.objects.filter(part=first.part).update(state=LineState.SUCCEEDED)
    second = turns.next_turn(backend_row, first)
    assert (first.part.batch.owner_id, second.part.batch_id) == (1, own)
    stamps = dict(Owner.objects.values_list("pk", "turn_at"))
    assert stamps[late.pk] is None
    assert stamps[1] is not None


def test_the_turn_of_a_part_is_stamped_with_its_first_lines(create, work, backend):
    work.validate(create([line("a"), line("b")])["id"])
    own = registry.report_backend()
    turn = turns.next_turn(own, None)
    assert Part.objects.get().turn_at is None
    turn.claimed(Line.objects.first())
    assert Part.objects.get().turn_at is not None
    assert turns.next_turn(own, turn) is turn


CHANGES = {
    "its batch is paused": (lambda: Batch.objects.update(paused_at=NOW), None),
    "its model fails": (lambda: Part.objects.update(failure={"status": 404}), None),
    "its model is paused": (
        lambda: PausedModel.pause(
            Backend.objects.get(), "/v1/chat/completions", Part.objects.get().model, "It fails.", at_least=timedelta(1)
        ),
        None,
    ),
    "its lines are sent": (lambda: Line.objects.update(state=LineState.RUNNING), None),
    "the server broke down": (lambda: Line.objects.update(most_together=2), Which.SPLIT),
    "one line brings the server down": (lambda: Line.objects.update(most_together=1, attempts=1), Which.CHARGED),
    "its lines were lost": (lambda: Line.objects.update(lost_claims=turns.SUSPICIOUS_CLAIMS), Which.LOST),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_turn_that_nothing_else_waits_for_goes_on_by_small_queries_until_something_changes(
    change, create, work, backend, django_assert_max_num_queries
):
    work.validate(create([line("a"), line("b")])["id"])
    own = registry.report_backend()
    turn = turns.next_turn(own, None)
    with django_assert_max_num_queries(5):
        assert turns.next_turn(own, turn) is turn
    happen, which = CHANGES[change]
    happen()
    following = turns.next_turn(own, turn)
    assert (following and following.which) == which


def test_that_no_line_waits_is_found_out_by_small_queries(create, work, backend, django_assert_num_queries):
    """As it is each second while the last lines of a batch are in flight."""
    work.validate(create([line("a"), line("b")])["id"])
    own = registry.report_backend()
    turn = turns.next_turn(own, None)
    Line.objects.update(state=LineState.RUNNING)
    with django_assert_num_queries(4):
        assert turns.next_turn(own, turn) is None
    Line.objects.update(state=LineState.PENDING, lost_claims=turns.SUSPICIOUS_CLAIMS)
    assert turns.next_turn(own, turn).which is Which.LOST


def test_a_batch_that_comes_ends_a_turn_in_time_though_nothing_waited_before(create, work, backend):
    first = work.batch(create([line("a"), line("b")])["id"])["id"]
    work.validate(first)
    own = registry.report_backend()
    turn = turns.next_turn(own, None)
    turn.claimed(Line.objects.first())
    turn.began -= FIRST_TURN_WITHIN_S + 1
    assert turns.next_turn(own, turn) is turn
    second = create([line("c")])["id"]
    work.validate(second)
    assert turns.next_turn(own, turn).part.batch_id == second
