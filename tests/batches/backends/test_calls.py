"""Calls in flight, against a real socket: how long they took, and that one leaves nothing behind for the next."""

import gzip
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from batches import backends, registry
from batches.backends.base import BackendKind
from batches.backends.calls import CallPool
from batches.backends.connection import Server
from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.backends.vllm import Vllm as VllmKind
from tests.conftest import CHAT, line
from tests.fake_backend import Action, answer
from tests.stack import eventually, free_port


@pytest.fixture
def pool(db, backend):
    pool = backends.open_calls(registry.report_backend().kind)
    yield pool
    pool.close()


def call(text, timeout_s=10.0):
    return Call(None, CHAT, line(text)["body"], timeout_s)


def finished(pool, call):
    while call in pool.in_flight:
        pool.wait(0.1)
    return call


@pytest.mark.slow
def test_a_call_that_ended_before_it_was_its_turn_took_no_negative_time(pool, backend):
    backend.on("first", Action(delay_s=1.0))
    first, second = call("first"), call("second")
    pool.submit(first)
    pool.submit(second)  # behind it, as far as is known
    eventually(lambda: second.finished, within_s=5)
    pool.in_flight.running = 2  # the window has grown meanwhile
    time.sleep(0.1)
    pool.submit(call("third"))
    for each in (first, second):
        assert finished(pool, each).verdict is Verdict.ANSWERED
    assert 0 < second.duration_s < first.duration_s


def test_a_question_after_a_call_that_was_cut_is_asked(pool, backend):
    backend.on("long", Action(hang=True))
    long = call("long")
    pool.submit(long)
    eventually(lambda: backend.seen, within_s=5)
    pool.cut(long)
    assert finished(pool, long).verdict is Verdict.CUT
    # By the same thread, over a new connection, and with a GET.
    question = Call(None, "", {}, 5.0, lambda ask: ask("/v1/models", None))
    pool.submit(question)
    assert finished(pool, question).verdict is Verdict.ANSWERED
    assert question.result[0] == 200


@pytest.mark.slow
def test_many_calls_in_flight_keep_their_answers(pool, backend):
    calls = {text: call(text) for text in map(str, range(100))}
    for each in calls.values():
        pool.submit(each)
    for text, each in calls.items():
        finished(pool, each)
        assert each.reply.verdict is Verdict.ANSWERED
        assert text in each.reply.body
    assert sum(thread.name == "transfers" for thread in threading.enumerate()) == 1


@pytest.mark.slow
def test_a_call_that_is_cut_ends_alone_and_the_server_knows(pool, backend):
    for text in ("a", "b", "c"):
        backend.on(text, Action(hang=True) if text == "b" else Action(delay_s=1.0))
    calls = [call(text) for text in "abc"]
    for each in calls:
        pool.submit(each)
    eventually(lambda: len(backend.seen) == 3, within_s=10)
    pool.cut(calls[1])
    assert finished(pool, calls[1]).verdict is Verdict.CUT
    seen = next(each for each in backend.seen if each.key == "b")
    eventually(lambda: seen.left < float("inf"), within_s=10)
    assert [finished(pool, each).verdict for each in (calls[0], calls[2])] == [Verdict.ANSWERED] * 2


@pytest.mark.parametrize(
    ("action", "verdict", "code"),
    [
        (Action(reset=True), Verdict.CRASHED, "backend_crash"),
        (Action(cut_after=20), Verdict.CRASHED, "backend_crash"),
        (Action(body=b"not gzip", headers={"Content-Encoding": "gzip"}), Verdict.CRASHED, "backend_crash"),
        (Action(body=b"x" * 3000), Verdict.FAILED, "reply_too_large"),
        (
            Action(body=gzip.compress(b"x" * 10**6), headers={"Content-Encoding": "gzip"}),
            Verdict.FAILED,
            "reply_too_large",
        ),
    ],
)
def test_what_is_no_whole_answer(backend, action, verdict, code):
    pool = CallPool(BackendKind(), Server(backend.url, max_reply_bytes=2000))
    try:
        for text in ("first", "second"):  # nothing is left for the next call
            backend.always(text, action)
            each = call(text)
            pool.submit(each)
            reply = finished(pool, each).reply
            assert (reply.verdict, reply.code) == (verdict, code)
    finally:
        pool.close()


def test_a_question_beside_the_lines_has_a_deadline_too(backend):
    """It waits for no call, so its clock runs at once: a server that hangs keeps no drive."""
    backend.on("long", Action(hang=True))
    pool = CallPool(BackendKind(), Server(backend.url))
    try:
        body = line("long")["body"]
        question = Call(None, "", {}, 0.5, lambda ask: ask(CHAT, body), is_light=True)
        pool.submit(question)
        eventually(lambda: pool.wait(0.1) == [question], within_s=10)
        assert (question.timed_out, question.verdict) == (True, Verdict.FAILED)
    finally:
        pool.close()


def test_a_server_that_takes_no_connection_got_nothing():
    pool = CallPool(BackendKind(), Server(f"http://127.0.0.1:{free_port()}"))
    try:
        each = call("a")
        pool.submit(each)
        assert finished(pool, each).verdict is Verdict.UNREACHABLE
    finally:
        pool.close()


@pytest.mark.parametrize("server", [Server("http://b\xfccher.local:1"), Server("http://127.0.0.1:1", api_key="\xe9")])
def test_what_http_cannot_carry_is_told_and_harms_no_other_call(server):
    pool = CallPool(BackendKind(), server)
    try:
        for text in ("a", "b"):
            each = call(text)
            pool.submit(each)
            assert finished(pool, each).verdict is Verdict.UNREACHABLE
    finally:
        pool.close()


def test_a_pool_that_is_closed_cuts_its_calls_and_ends_its_thread(backend):
    backend.always("long", Action(hang=True))
    pool = CallPool(BackendKind(), Server(backend.url))
    pool.submit(call("long"))
    eventually(lambda: backend.seen, within_s=10)
    pool.close()
    pool.close()
    eventually(lambda: backend.seen[0].left < float("inf"), within_s=10)
    eventually(lambda: all(thread.name != "transfers" for thread in threading.enumerate()), within_s=10)


def http(text, *, headers=b"", request_id=""):
    """A good answer that says `text`, over a connection that stays open, whatever the client asked for."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = json.dumps({"id": f"chatcmpl-{request_id}", "choices": [choice]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


class Answering:
    """A server that answers each request with its prompt; if it `echoes`, as vLLM does, with its X-Request-Id too. It
    sends `more` over the first connection: right behind the first answer, or once the second request has come and is
    not answered yet. `dies_at` this text it closes all connections without an answer; then it
    listens on if it `comes_back`."""

    def __init__(self, more=b"", *, late=False, echoes=False, dies_at="", comes_back=False):
        self.more, self.late, self.echoes, self.dies_at, self.comes_back = more, late, echoes, dies_at, comes_back
        self.asked = []
        self.carriers = []  # for each of these that was answered, the number of its connection
        self.connections = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close(self.listener, *self.connections)

    def close(self, *sockets):
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        received = b""
        with suppress(OSError), connection:
            while chunk := connection.recv(2**16):
                received += chunk
                head, _, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                if length is None or len(body) < int(length[1]):
                    continue
                received = b""
                text = json.loads(body)["messages"][0]["content"]
                self.asked.append(text)
                if text == self.dies_at:
                    self.close(*([] if self.comes_back else [self.listener]), *self.connections)
                    return
                self.carriers.append(self.connections.index(connection))
                is_first = len(self.asked) == 1
                if not is_first and self.late:
                    with suppress(OSError):
                        self.connections[0].sendall(self.more)
                told = re.search(rb"x-request-id: *(\w+)", head, re.IGNORECASE)
                answer = http(text, request_id=told[1].decode() if told and self.echoes else "1")
                connection.sendall(answer + self.more if is_first and not self.late else answer)


@contextmanager
def open_pool(kind, url, **told):
    pool = CallPool(kind, Server(url, **told))
    try:
        yield pool
    finally:
        pool.close()


def said(pool, text):
    """What the server answered to `text`."""
    pool.submit(each := call(text))
    reply = finished(pool, each).reply
    assert reply.verdict is Verdict.ANSWERED
    return json.loads(reply.body)["choices"][0]["message"]["content"]


def refusal(status):
    return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status


SECOND_ANSWERS = [
    http("wrong"),
    http("wrong", request_id="f" * 32),
    http("wrong", headers=b"Connection: keep-alive\r\n"),
    http("wrong") * 3,
    http("wrong" * 1000),
    b"HTTP/1.1 100 Continue\r\n\r\n" + http("wrong"),
    *map(refusal, (400, 404, 500, 501)),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("more", [*SECOND_ANSWERS, refusal(503), b"more than the Content-Length says"])
def test_a_second_answer_to_a_call_is_never_the_next_ones(more, late):
    with Answering(more, late=late) as server, open_pool(BackendKind(), server.url, max_reply_bytes=2000) as pool:
        assert [said(pool, text) for text in ("first", "second", "third")] == ["first", "second", "third"]
        assert server.carriers == [0, 1, 2]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("more", SECOND_ANSWERS)
def test_nor_where_answers_bear_the_id_of_their_requests_and_connections_are_kept(more, late):
    with (
        Answering(more, late=late, echoes=True) as server,
        open_pool(VllmKind(), server.url, max_reply_bytes=2000) as pool,
    ):
        assert [said(pool, text) for text in ("first", "second", "third")] == ["first", "second", "third"]
        # What came too early, libcurl finds before it sends. Else the second one was sent again.
        assert server.carriers[:2] == ([0, 0] if late else [0, 1])


@pytest.mark.parametrize("more", [*map(refusal, (429, 503)), b"what is no HTTP"])
def test_what_sends_a_line_again_anyway_is_told_as_it_is_over_a_kept_connection_too(more):
    with Answering(more, late=True, echoes=True) as server, open_pool(VllmKind(), server.url) as pool:
        assert said(pool, "first") == "first"
        pool.submit(second := call("second"))
        assert finished(pool, second).verdict in (Verdict.BUSY, Verdict.CRASHED)
        assert server.asked == ["first", "second"]


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_where_answers_bear_the_id_of_their_requests_one_connection_carries_many(endpoint, backend):
    backend.is_vllm = True
    with open_pool(VllmKind(), backend.url) as pool:
        for number in range(10):
            pool.submit(each := Call(None, endpoint, line(f"{number}", url=endpoint)["body"], 10.0))
            assert finished(pool, each).verdict is Verdict.ANSWERED
        assert backend.connections == 1


def test_a_call_that_is_cut_ends_its_kept_connection(backend):
    backend.is_vllm = True
    backend.on("long", Action(hang=True))
    with open_pool(VllmKind(), backend.url) as pool:
        for text in ("first", "long", "third"):
            pool.submit(each := call(text))
            if text == "long":
                eventually(lambda: len(backend.seen) == 2, within_s=10)
                pool.cut(each)
            assert finished(pool, each).verdict is (Verdict.CUT if text == "long" else Verdict.ANSWERED)
        eventually(lambda: backend.seen[1].gone, within_s=10)
        assert backend.connections == 2


def test_where_they_turn_out_to_bear_none_each_request_is_sent_once_over_its_own():
    """An earlier version, or a proxy that puts ids of its own in the place of ours."""
    with Answering() as server, open_pool(VllmKind(), server.url) as pool:
        texts = [str(number) for number in range(4)]
        assert [said(pool, text) for text in texts] == texts == server.asked
        assert server.carriers == [0, 1, 2, 3]


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_request_over_a_kept_connection_is_not_sent_again_by_libcurl_itself(comes_back):
    """Else a line that kills the server would do so twice, and not be charged where nobody listens the second time."""
    with (
        Answering(echoes=True, dies_at="death", comes_back=comes_back) as server,
        open_pool(VllmKind(), server.url) as pool,
    ):
        assert said(pool, "first") == "first"
        pool.submit(death := call("death"))
        assert finished(pool, death).verdict is Verdict.CRASHED
        assert server.asked == ["first", "death"]
        if comes_back:
            assert [said(pool, text) for text in ("second", "third")] == ["second", "third"]
            assert server.carriers == [0, 1, 2]  # it may end kept connections sooner than we do: no more of them


class Vllm:
    """A vLLM that takes priorities, ignores them, or refuses them as some versions do."""

    def __init__(self, http, *, refuses=False, fails=False):
        self.refuses, self.fails = refuses, fails
        self.priorities = []
        http.expect_request(CHAT, method="POST").respond_with_handler(self.answer)

    def answer(self, request):
        body = request.get_json()
        self.priorities.append(body.get("priority"))
        if self.fails or (self.refuses and body.get("priority")):
            message = "Got priority 1000000 but Priority scheduling is not enabled."
            error = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
            return Response(json.dumps(error), status=400, content_type="application/json")
        return Response(json.dumps(answer(CHAT, body, 4096)), content_type="application/json")


@pytest.fixture
def vllm_pool(settings):
    with HTTPServer() as http:
        settings.BACKEND_URL = http.url_for("").rstrip("/")
        pool = backends.open_calls("vllm")
        yield pool, http
        pool.close()


def ask_vllm(pool, *priorities):
    verdicts = []
    for priority in priorities:
        body = line("hello")["body"] | ({} if priority is None else {"priority": priority})
        one = Call(None, CHAT, body, 10.0)
        pool.submit(one)
        verdicts.append(finished(pool, one).verdict)
    return verdicts


def test_lines_stand_behind_persons_at_a_vllm_and_keep_their_order(vllm_pool):
    pool, http = vllm_pool
    server = Vllm(http)
    assert set(ask_vllm(pool, None, 0, 3, -5)) == {Verdict.ANSWERED}
    none, zero, after, before = server.priorities
    assert 0 < before < none == zero < after  # a person's has 0


def test_a_vllm_that_refuses_priorities_is_asked_without_them_from_then_on(vllm_pool):
    pool, http = vllm_pool
    server = Vllm(http, refuses=True)
    assert set(ask_vllm(pool, None, None)) == {Verdict.ANSWERED}
    assert [bool(each) for each in server.priorities] == [True, False, False]


@pytest.mark.parametrize("priority", ["high", 2**63, None])
def test_a_line_that_is_refused_for_itself_takes_no_priority_from_others(vllm_pool, priority):
    pool, http = vllm_pool
    server = Vllm(http, fails=True)
    assert ask_vllm(pool, priority) == [Verdict.REFUSED]
    assert server.priorities[-1] == priority  # as it was written
    server.fails = False
    server.priorities.clear()
    ask_vllm(pool, None)
    assert server.priorities[0] > 0
