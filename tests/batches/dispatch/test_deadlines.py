"""How long an answer may take, from how long others took."""

import pytest

from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.dispatch.deadlines import LEAST_S, MOST_S, ModelSpeed


@pytest.fixture(autouse=True)
def _unset(settings):
    settings.LINE_TIMEOUT_S = None


def paced(*answers):
    """A pace that saw answers of so many tokens in, tokens out, seconds."""
    pace = ModelSpeed()
    for tokens_in, tokens_out, seconds in answers:
        reply = Reply(Verdict.ANSWERED, usage=Usage(input_tokens=tokens_in, output_tokens=tokens_out))
        pace.note(Call(None, "", {}, 0.0, duration_s=seconds, reply=reply))
    return pace


def test_what_was_set_counts(settings):
    settings.LINE_TIMEOUT_S = 7
    assert paced((10, 100, 1)).deadline_s({}) == 7


def test_before_anything_was_measured_it_is_the_longest():
    assert ModelSpeed().deadline_s({"max_tokens": 1}) == MOST_S
    assert paced((0, 0, 5)).deadline_s({"max_tokens": 1}) == MOST_S


def test_short_answers_get_the_least():
    assert paced((10, 100, 2)).deadline_s({"max_tokens": 16, "messages": "hello"}) == LEAST_S


def test_an_answer_gets_several_times_what_its_tokens_take():
    pace = paced((0, 100, 10))  # 10 tokens a second
    assert pace.deadline_s({"max_tokens": 1000}) == pytest.approx(4 * 100)
    assert pace.deadline_s({"max_tokens": 1000, "max_completion_tokens": 500}) == pytest.approx(4 * 50)
    # A prompt of 30,000 bytes has about 10,000 tokens, read ten times as fast as written.
    assert pace.deadline_s({"max_tokens": 1000, "prompt": "x" * 30_000}) == pytest.approx(4 * 200)
    # JSON's true is no number.
    assert pace.deadline_s({"max_tokens": True}) == pace.deadline_s({})


def test_the_slowest_of_the_last_answers_counts_and_is_forgotten_in_time():
    slow = (0, 100, 50)
    assert paced(slow, *[(0, 100, 10)] * 49).deadline_s({"max_tokens": 100}) == pytest.approx(4 * 50)
    assert paced(slow, *[(0, 100, 10)] * 50).deadline_s({"max_tokens": 100}) == LEAST_S


def test_without_a_limit_the_longest_answer_yet_is_the_measure():
    assert paced((0, 100, 10)).deadline_s({}) == pytest.approx(4 * 204.8)
    assert paced((0, 300, 30)).deadline_s({"max_tokens": None}) == pytest.approx(4 * 300)


def test_a_line_that_failed_before_gets_the_longest():
    assert paced((10, 100, 2)).deadline_s({"max_tokens": 16}, is_retry=True) == MOST_S


def test_a_prompt_that_may_have_been_read_before_does_not_count():
    """2000 tokens of a shared prompt, in the cache: the 20 that were written took the time."""
    assert paced((2000, 20, 5.5)).deadline_s({"max_tokens": 1000}) == pytest.approx(4 * 275)
    assert paced((2000, 0, 1)).deadline_s({}) == LEAST_S  # an embedding


def test_a_limit_that_no_float_holds_is_a_long_answer():
    assert paced((0, 100, 10)).deadline_s({"max_tokens": 10**400}) == MOST_S


def test_it_is_never_longer_than_the_longest():
    assert paced((0, 10, 100)).deadline_s({"max_tokens": 100_000}) == MOST_S
