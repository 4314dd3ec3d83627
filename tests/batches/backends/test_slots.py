"""The slots of a server are counted by the order in which it begins and ends its answers."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from batches.backends import slots
from batches.backends.connection import Connection, Cut, Server
from batches.backends.ollama import Ollama

REQUESTS = Ollama().slot_requests("tiny")


@contextmanager
def server(computes_at_once, pieces=(20, 20), status=200, pause_s=0.005, most_requests=1000):
    """Streams so many `pieces` in answer to each of REQUESTS; requests beyond its slots wait, and those after the first
    `most_requests` are refused. Yields its address."""
    slot = threading.Semaphore(computes_at_once)
    rest = threading.Semaphore(most_requests)
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = [body for _, body in REQUESTS].index(asked)
            self.close_connection = True
            with slot:
                self.send_response(status if rest.acquire(blocking=False) else 503)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for _ in range(pieces[number]):
                        self.wfile.write(b"4\r\nword\r\n")
                        stopped.wait(pause_s)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    pass  # broken off

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        stopped.set()
        listening.shutdown()


def counted(url, *, is_cut=lambda: False):
    return slots.count(lambda: Connection(Server(url)), REQUESTS, is_cut=is_cut)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_as_many_answers_begin_before_the_first_ends_as_there_are_slots(number):
    with server(number) as url:
        assert counted(url) == number


@pytest.mark.parametrize("number", [1, 4])
def test_nobody_waits_for_the_end_of_a_slow_answer(number):
    with server(number, pieces=(10**6, 10**6), pause_s=0.02) as url:
        assert counted(url) == number


@pytest.mark.slow
@pytest.mark.parametrize(("number", "found"), [(16, 16), (64, slots.MOST_SLOTS)])
def test_more_slots_than_the_first_requests_tell_apart_are_counted_by_more_requests(number, found):
    with server(number, pause_s=0.05) as url:
        assert counted(url) == found


def test_a_count_that_breaks_down_beyond_the_first_requests_is_at_least_these():
    with server(16, pause_s=0.02, most_requests=slots.FEW_SLOTS) as url:
        assert counted(url) == slots.FEW_SLOTS


def test_an_answer_that_is_too_short_is_asked_in_another_way():
    with server(2, pieces=(3, 20)) as url:
        assert counted(url) == 2


@pytest.mark.parametrize("fault", [{"pieces": (3, 3)}, {"status": 500}, {"pieces": (0, 0)}])
def test_a_server_whose_answers_do_not_tell_is_not_guessed(fault):
    with server(2, **fault) as url:
        assert counted(url) is None


def test_a_server_that_is_away_is_not_guessed():
    with server(1) as url:
        pass
    assert counted(url) is None


def test_the_count_is_broken_off_for_a_person():
    with server(1, pause_s=60) as url, pytest.raises(Cut):
        counted(url, is_cut=lambda: True)
