"""The web server's loop, which a test drives by hand: connections that are accepted, and closed for others' sake."""

import errno
import logging
import select
import selectors
import socket
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from batchserver import gunicorn_worker
from batchserver.client_socket import MOST_HEAD_BYTES, Patience
from batchserver.gunicorn_worker import Worker
from batchserver.request_kinds import Kind
from tests.stack import eventually

MOST = 4


@pytest.fixture
def worker(monkeypatch):
    """With room for MOST connections, one fewer than are refused; it answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config()
        config.set("threads", 2)
        made = Worker(1, 1, [listener], None, 60, config, logging.getLogger("gunicorn.error"))
        made.tpool, made.poller = made.get_thread_pool(), selectors.DefaultSelector()
        made._patience, made._keep_alive_s, made._most_of_one, made._proxies = Patience(60.0, 0), 75.0, 0, []
        made.worker_connections = MOST + 1
        monkeypatch.setattr(made, "_hand_over", lambda connection: None)
        made.set_accept_enabled(True)
        yield made
        made.murder_keepalived(force=True)
        made.tpool.shutdown()
        made.poller.close()
        made.tmp.close()


@pytest.fixture
def connect(worker):
    with ExitStack() as clients:

        def connect(sent=b"", *, is_accepted=True):
            client = clients.enter_context(socket.create_connection(worker.sockets[0].getsockname(), timeout=10))
            client.sendall(sent)
            if is_accepted:
                before = set(worker._held)
                eventually(lambda: go_round(worker) or set(worker._held) - before, what="the connection")
                go_round(worker)
            return client

        yield connect


def go_round(worker):
    worker.wait_for_and_dispatch_events(0)


def is_open(client):
    return not select.select([client], [], [], 0)[0]


def test_a_connection_that_is_closed_for_another_may_have_sent_something_meanwhile(worker, connect):
    """The loop learns of both at once: it accepts the new one first, and has the old one's bytes still to read."""
    clients = [connect() for _ in range(MOST)]
    connect(is_accepted=False)
    for client in clients:
        client.sendall(b"G")
    events = {key.fileobj: key for key, _ in worker.poller.select(1)}
    assert len(events) == MOST + 1
    listener = events.pop(worker.sockets[0])
    for key in (listener, *events.values()):
        key.data(key.fileobj)
    assert (worker.nr_conns, len(worker._held)) == (MOST, MOST)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_room_is_made_by_who_is_slow_and_not_by_who_is_new_or_kept(worker, connect, sent):
    kept = connect()
    [connection] = worker._held
    connection.parser = object()  # it had a request before
    slow = [connect(sent) for _ in range(2)]
    for each in worker._held:
        each.since -= gunicorn_worker.PROMPT_S + 1
    new = connect()
    others = [connect(sent) for _ in range(2)]
    assert [is_open(client) for client in slow] == [False, False]
    assert all(is_open(client) for client in (kept, new, *others))
    connect()
    assert not is_open(kept)
    assert is_open(new)


@pytest.mark.parametrize("reason", [errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO, errno.ENOBUFS, errno.EPERM])
def test_a_connection_that_cannot_be_accepted_is_no_end_of_the_server(worker, reason):
    def accept():
        raise OSError(reason, "")

    worker.accept(SimpleNamespace(accept=accept))
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError, match="Bad"):  # a fault of ours is
        worker.accept(closed)


def test_a_head_that_does_not_end_is_refused_without_a_thread(worker, connect):
    client = connect(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MOST_HEAD_BYTES // 6))
    eventually(lambda: go_round(worker) or not is_open(client), within_s=10, what="the answer")
    assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    [connection] = worker._held
    assert connection.is_lingering


@pytest.mark.parametrize(
    ("first_line", "kind"),
    [
        ("GET /health HTTP/1.1", Kind.MONITOR),
        ("GET /readyz?exclude=broker HTTP/1.1", Kind.MONITOR),
        ("POST /admin/login/ HTTP/1.1", Kind.ADMIN),
        ("GET /v1/batches?limit=1 HTTP/1.1", Kind.LOOK),
        ("GET /v1/models HTTP/1.1", Kind.LOOK),
        ("GET /v1/files/file-a/content HTTP/1.1", Kind.DOWNLOAD),
        ("HEAD /v1/batches/batch_a/output?after=1 HTTP/1.1", Kind.DOWNLOAD),
        ("GET /v1/batches/batch_a/errors HTTP/1.1", Kind.DOWNLOAD),
        ("POST /v1/files HTTP/1.1", Kind.SEND),
        ("DELETE /v1/files/file-a HTTP/1.1", Kind.SEND),
        ("POST /v1/chat/completions HTTP/1.1", Kind.MODEL),
        ("POST /v1/messages?beta=true HTTP/1.1", Kind.MODEL),
        ("POST /api/chat HTTP/1.1", Kind.MODEL),
        ("GET / HTTP/1.1", Kind.OTHER),
        # Other words for the same address: they get no more places for it.
        ("\r\nGET /v1/files/file-a/content HTTP/1.1", Kind.DOWNLOAD),
        ("GET /v1/%66iles/file-a/content HTTP/1.1", Kind.OTHER),
        ("GET http://localhost/v1/files/file-a/content HTTP/1.1", Kind.OTHER),
        ("nonsense", Kind.OTHER),
        ("", Kind.OTHER),
    ],
)
def test_requests_of_one_kind_wait_for_each_other(first_line, kind):
    assert Kind.of(f"{first_line}\r\nHost: a\r\n\r\n".encode()) is kind
