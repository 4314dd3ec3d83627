"""Threads that stand aside while they wait for a client, and how long a client is waited for."""

import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from django.db import connection

from batchserver import client_socket, request_threads
from batchserver.client_socket import ClientSocket, Patience
from batchserver.request_threads import Queue, RequestThreads
from tests.stack import eventually

WAIT_S = 20  # far longer than anything here takes
ANY = Queue("any", 99)


@pytest.fixture
def threads(request):
    made = RequestThreads(places=2, most=getattr(request, "param", 8))
    yield made
    made.shutdown()


def test_no_more_than_the_places_are_at_work_and_the_rest_waits(threads):
    end, at_work = threading.Event(), []

    def work(number):
        at_work.append(number)
        end.wait(WAIT_S)
        return number

    done = [threads.submit(ANY, work, number) for number in range(4)]
    eventually(lambda: len(at_work) == 2, within_s=WAIT_S)
    assert not threads.lacks_threads
    end.set()
    assert [each.result(WAIT_S) for each in done] == [0, 1, 2, 3]


def test_who_stands_aside_gives_its_place_and_comes_back_before_new_requests(threads):
    client, order = threading.Event(), []

    def wait_for_client():
        with threads.standing_aside():
            client.wait(WAIT_S)
        order.append("back")

    waiting = [threads.submit(ANY, wait_for_client) for _ in range(4)]
    # More wait than there are places, and others are served.
    assert threads.submit(ANY, lambda: "served").result(WAIT_S) == "served"
    end = threading.Event()
    busy = [threads.submit(ANY, end.wait, WAIT_S) for _ in range(2)]
    eventually(lambda: threads._free == 0 and threads._queues.next() is None, within_s=WAIT_S)
    later = threads.submit(ANY, order.append, "new")
    client.set()
    eventually(lambda: len(threads._returning) == 4, within_s=WAIT_S)
    assert order == []
    end.set()
    for each in [*waiting, *busy, later]:
        each.result(WAIT_S)
    assert order.index("new") >= 2


def test_queues_take_turns():
    """However many came before into another one."""
    threads, end, order = RequestThreads(places=1, most=9), threading.Event(), []
    busy = [threads.submit(ANY, end.wait, WAIT_S)]
    many = [threads.submit(Queue("many", 1), order.append, "many") for _ in range(100)]
    few = [threads.submit(Queue(name, 1), order.append, name) for name in ("a", "b", "a")]
    end.set()
    for each in [*busy, *many, *few]:
        each.result(WAIT_S)
    assert order == ["many", "a", "b", "many", "a", *["many"] * 98]
    threads.shutdown()


def test_a_queue_leaves_places_to_others_and_a_client_that_is_waited_for_has_none():
    threads, end, client, at_work = RequestThreads(places=4, most=9), threading.Event(), threading.Event(), []
    many = Queue("many", 2)

    def work(number):
        at_work.append(number)
        if number == 0:
            with threads.standing_aside():
                client.wait(WAIT_S)
        end.wait(WAIT_S)

    done = [threads.submit(many, work, number) for number in range(4)]
    eventually(lambda: len(at_work) == 3, within_s=WAIT_S)
    assert threads.submit(ANY, len, "abc").result(WAIT_S) == 3
    assert sorted(at_work) == [0, 1, 2]
    assert not threads.lacks_threads
    client.set()  # it goes on at once, in one of the places that are free
    eventually(lambda: threads._queues._at_work[many] == 3, within_s=WAIT_S)
    end.set()
    for each in done:
        each.result(WAIT_S)
    eventually(lambda: not threads._queues._at_work, within_s=WAIT_S)
    threads.shutdown()


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_it_tells_when_all_threads_wait(threads):
    client = threading.Event()

    def wait_for_client():
        with threads.standing_aside():
            client.wait(WAIT_S)

    waiting = [threads.submit(ANY, wait_for_client) for _ in range(4)]
    eventually(lambda: threads.lacks_threads, within_s=WAIT_S)
    client.set()
    for each in waiting:
        each.result(WAIT_S)
    assert not threads.lacks_threads


def test_an_error_is_the_submitters_and_the_thread_goes_on(threads):
    with pytest.raises(ZeroDivisionError):
        threads.submit(ANY, lambda: 1 / 0).result(WAIT_S)
    with pytest.raises(SystemExit):
        threads.submit(ANY, lambda: exit(1)).result(WAIT_S)
    assert threads.submit(ANY, len, "abc").result(WAIT_S) == 3


def test_few_threads_are_kept(monkeypatch):
    monkeypatch.setattr(request_threads, "KEPT", 2)
    threads, begun = RequestThreads(places=6, most=6), threading.Barrier(7)
    done = [threads.submit(ANY, begun.wait, WAIT_S) for _ in range(6)]
    begun.wait(WAIT_S)
    for each in done:
        each.result(WAIT_S)
    eventually(lambda: threads._count == 2, within_s=WAIT_S)
    threads.shutdown()


def test_kept_threads_and_those_at_work_are_as_many_as_the_places(threads):
    """Each may have a connection to the database."""
    client, end = threading.Event(), threading.Event()

    def wait_for_client():
        with threads.standing_aside():
            client.wait(WAIT_S)
        end.wait(WAIT_S)

    waiting = [threads.submit(ANY, wait_for_client) for _ in range(2)]
    assert threads.submit(ANY, len, "abc").result(WAIT_S) == 3
    eventually(lambda: len(threads._kept) == 1, within_s=WAIT_S)
    client.set()
    eventually(lambda: threads._free == 0, within_s=WAIT_S)
    assert (threads._kept, threads._count) == ([], 2)
    end.set()
    for each in waiting:
        each.result(WAIT_S)
    assert threads.submit(ANY, len, "abc").result(WAIT_S) == 3


def test_a_signal_that_ends_the_server_may_come_while_a_request_is_submitted(threads, monkeypatch):
    """SIGINT, whose handler runs in the loop's thread wherever that is."""
    answers = []
    loop = threading.Thread(target=lambda: answers.append(threads.submit(ANY, len, "abc").result(WAIT_S)), daemon=True)

    class Interrupted(threading.Thread):
        def start(self):
            threads.shutdown()
            super().start()

    monkeypatch.setattr(request_threads.threading, "Thread", Interrupted)
    loop.start()
    loop.join(WAIT_S)
    assert answers == [3]


@pytest.mark.parametrize(
    ("stood_still_s", "waited_s", "moved_bytes", "is_over"),
    [
        (0, 0, 0, False),
        (9.9, 9.9, 0, False),
        (10, 10, 10**9, True),  # it stands still, whatever it moved before
        (1, 11, 11 * 100, False),
        (1, 11, 11 * 100 - 1, True),
        (1, 3600, 10**9, False),
    ],
)
def test_patience(stood_still_s, waited_s, moved_bytes, is_over):
    assert Patience(10, 100).is_over(stood_still_s, waited_s, moved_bytes) is is_over
    assert Patience(10, 0).is_over(0, waited_s, 0) is False


@pytest.fixture
def pair(request):
    """Our end of a connection, and the client's."""
    patience = Patience(*getattr(request, "param", (0.2, 0)))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(WAIT_S)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with ClientSocket(accepted, patience, nullcontext) as ours:
            yield ours, client


def test_who_sends_nothing_and_who_takes_nothing_is_given_up(pair):
    ours, _ = pair
    with pytest.raises(TimeoutError, match="too slowly"):
        ours.recv(10)
    with pytest.raises(BrokenPipeError, match="too slowly"):
        ours.sendall(b"a" * 2**24)
    assert ours.is_given_up


def test_the_system_keeps_little_for_a_client_that_takes_nothing(pair):
    ours, _ = pair
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"a" * 2**24)
    assert 0 < ours._queued() < 2**20


@pytest.mark.parametrize("pair", [(0.2, 10**12)], indirect=True)
def test_who_is_slow_is_given_up_although_something_moves(pair):
    ours, client = pair
    with ThreadPoolExecutor(1) as pool:
        end = threading.Event()

        def drip():
            while not end.wait(0.05):
                client.sendall(b"a")

        dripping = pool.submit(drip)
        with pytest.raises(TimeoutError):
            list(iter(lambda: ours.recv(10), b""))
        end.set()
        dripping.result()


@pytest.mark.parametrize("pair", [(WAIT_S, 1000)], indirect=True)
def test_what_a_slow_client_sent_counts_while_it_takes_its_answer(pair):
    """Both together are as fast as is asked for."""
    ours, client = pair
    ours.begin(SimpleNamespace(_expected_100_continue=False))
    client.sendall(b"a" * 2**16)
    while ours._received < 2**16:
        ours.recv(2**16)
    ours._waited_s = 60.0
    answer = b"a" * 2**22
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(ours.sendall, answer)
        eventually(lambda: ours.waits_since is not None, within_s=WAIT_S)
        left = len(answer)
        while left:
            left -= len(client.recv(2**16))
        sent.result(WAIT_S)


@pytest.mark.parametrize("pair", [(WAIT_S, 0)], indirect=True)
@pytest.mark.parametrize("way", ["sendall", "sendfile", "sendfile that the file system lacks"])
def test_an_answer_comes_whole_however_it_is_sent(pair, way, tmp_path, monkeypatch):
    ours, client = pair
    if way.endswith("lacks"):

        def refuse(*_):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "sendfile", refuse)
    content = os.urandom(2**20)
    path = tmp_path / "answer"
    path.write_bytes(b"left out" + content)
    with ThreadPoolExecutor(1) as pool, path.open("rb") as file:
        sent = pool.submit(ours.sendall, content) if way == "sendall" else pool.submit(ours.sendfile, file, 8)
        received = bytearray()
        while len(received) < len(content):
            received += client.recv(2**16)
        assert received == content
        assert sent.result(WAIT_S) == (None if way == "sendall" else len(content))


def test_who_waits_for_a_client_keeps_no_connection_to_the_database(transactional_db, pair, monkeypatch):
    """And has a new one afterwards. `aside` is entered before, so another thread may take the place meanwhile."""
    ours, client = pair
    monkeypatch.setattr(client_socket, "SHORT_WAIT_S", 0.0)
    monkeypatch.setattr(client_socket, "close_connections", lambda: seen.append("closed"))
    seen = []

    @contextmanager
    def aside():
        seen.append("aside")
        yield
        seen.append("back")

    ours._aside = aside
    connection.ensure_connection()
    with pytest.raises(TimeoutError):
        ours.recv(1)
    assert seen == ["aside", "closed", "back"]
    client.sendall(b"a")
    assert ours.recv(1) == b"a"
