"""What holds of a line of a result file for any answer."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batches.backends.base import BackendKind
from batches.models import LineState
from batches.results import MESSAGES, result_line
from tests.conftest import CHAT
from tests.generated import ANY_TEXT, TEXT, steady, values


def only_line(**row):
    """The one line that a row gives, read."""
    empty = {"http_status": None, "response": "", "error_code": "", "error_message": ""}
    text = result_line("batch_x", 1, **(empty | row))
    assert text.isascii()
    assert len(text.splitlines()) == 1
    assert text.endswith("\n")
    return json.loads(text)


@steady
@given(TEXT.filter(bool), st.dictionaries(ANY_TEXT, values(ANY_TEXT), max_size=4), ANY_TEXT)
@example("\u2028\x85\x1c\x1d\x1e\x0b\x0c\r\n\u2029", {"\u2028": "\x85"}, "\u2029")
def test_an_answer_is_one_line_that_says_the_same(custom_id, more, answer):
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    body = more | {"choices": [choice]}
    reply = BackendKind().judge(CHAT, 200, json.dumps(body).encode())
    state = LineState.SUCCEEDED
    result = only_line(custom_id=custom_id, state=state, http_status=reply.status, response=reply.body)
    assert (result["custom_id"], result["error"]) == (custom_id, None)
    assert (result["response"]["status_code"], result["response"]["body"]) == (200, body)


@steady
@given(TEXT.filter(bool), st.sampled_from([400, 404, 422, 500]), st.binary() | TEXT.map(str.encode))
def test_a_refusal_is_one_line_whatever_it_says(custom_id, status, content):
    reply = BackendKind().judge(CHAT, status, content)
    state = LineState.FAILED
    result = only_line(custom_id=custom_id, state=state, http_status=reply.status, response=reply.body)
    assert (result["custom_id"], result["response"]["status_code"]) == (custom_id, status)
    assert isinstance(result["response"]["body"], dict)


@pytest.mark.parametrize("state", [LineState.FAILED, LineState.CANCELLED, LineState.EXPIRED])
@steady
@given(TEXT.filter(bool), TEXT.filter(bool), TEXT)
def test_a_line_without_an_answer_is_one_line(state, custom_id, code, message):
    result = only_line(custom_id=custom_id, state=state, error_code=code, error_message=message)
    assert (result["custom_id"], result["response"]) == (custom_id, None)
    assert result["error"] == MESSAGES.get(state, {"code": code, "message": message})
