"""Clients that are slow, refused, or too many, at a real web server: nobody else notices, and all of it ends.

One server for the module: gunicorn with few places and without workers or a broker, which no test here needs.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import requests

from tests.stack import ROOT, eventually, free_port

PLACES = 24
ATTACKERS = 64
CLIENT_TIMEOUT_S = 10
# Far longer than an answer takes on a slow machine, and far shorter than an attacker is waited for.
SOON_S = 5
PREPARE = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from batchserver import first_start
first_start.make_directories()
call_command("migrate", verbosity=0)
User.objects.create_superuser("owner", password="the owner's own")
call_command("create_api_key", "me")
"""


class WebServer:
    def __init__(self, directory):
        self.port = free_port()
        self.log = directory / "web.log"
        self.environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "batchserver.settings",
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(directory / "data"),
            "DATABASE_URL": "",
            "CLIENT_TIMEOUT_S": str(CLIENT_TIMEOUT_S),
            "MAX_CONNECTIONS_PER_ADDRESS": "8",
        }
        prepared = subprocess.run(
            [sys.executable, "-c", PREPARE], env=self.environment, cwd=ROOT, check=True, capture_output=True, text=True
        )
        self.key = prepared.stdout.split()[-1]
        command = [sys.executable, "-m", "gunicorn", "batchserver.wsgi:application"]
        command += ["--bind", f"0.0.0.0:{self.port}", "--worker-class", "batchserver.gunicorn_worker.Worker"]
        command += ["--workers", "1", "--threads", str(PLACES), "--no-control-socket", "--log-level", "warning"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log)
        eventually(self.answers, what="the web server")
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self.key}"
            url = f"{self.base}/v1/files"
            lines = b'{"a": 1}\n' * 4_000_000
            sent = session.post(url, files={"file": ("a.jsonl", lines)}, data={"purpose": "batch"}, timeout=60)
            self.large_file = sent.json()["id"]

    @property
    def base(self):
        return f"http://127.0.0.1:{self.port}"

    def answers(self):
        with suppress(requests.RequestException):
            return requests.get(f"{self.base}/livez", timeout=2).ok
        return False

    def connect(self, sent=b"", *, host="127.0.0.1"):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(SOON_S)
        client.connect((host, self.port))
        client.sendall(sent)
        return client


@pytest.fixture(scope="module")
def server(tmp_path_factory, processes):
    made = WebServer(tmp_path_factory.mktemp("hostile"))
    yield made
    made.process.terminate()
    made.process.wait(20)
    assert "Traceback" not in made.log.read_text()


def head(server, method, path, *headers, key=True):
    bearer = [f"Authorization: Bearer {server.key}"] if key else []
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *bearer, *headers, "", ""]
    return "\r\n".join(lines).encode()


FORM = ("Content-Type: multipart/form-data; boundary=b", "Content-Length: 10000000000")
BEGUN = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
BEGUN += b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"a": 1}\n'
JSON = "Content-Type: application/json"
# What an attacker sends, and what is answered at once, if anything.
SLOW = {
    "nothing": lambda server: b"",
    "half a head": lambda server: head(server, "GET", "/v1/batches")[:-2],
    "half an upload": lambda server: head(server, "POST", "/v1/files", FORM[0], "Content-Length: 1000000") + BEGUN,
    "half a chunk": lambda server: (
        head(server, "POST", "/v1/files", FORM[0], "Transfer-Encoding: chunked") + b"fff\r\na"
    ),
    "half of JSON": lambda server: head(server, "POST", "/v1/batches", JSON, "Content-Length: 99") + b'{"a',
    "half of chunked JSON": lambda server: (
        head(server, "POST", "/v1/batches", JSON, "Transfer-Encoding: chunked") + b'3\r\n{"a'
    ),
    "half a form of the admin": lambda server: (
        head(server, "POST", "/admin/login/", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 99")
        + b"user"
    ),
    "a download never read": lambda server: head(server, "GET", f"/v1/files/{server.large_file}/content"),
}
REFUSED = {
    "an upload without a key": (401, lambda server: head(server, "POST", "/v1/files", *FORM, key=False) + BEGUN),
    "chunks without a key": (
        401,
        lambda server: head(server, "POST", "/v1/batches", JSON, "Transfer-Encoding: chunked", key=False) + b"fff\r\na",
    ),
    "a body of a refused type": (
        415,
        lambda server: head(server, "POST", "/v1/batches", "Content-Type: text/csv", FORM[1]) + b"a,b",
    ),
    "JSON of 10 GB": (413, lambda server: head(server, "POST", "/v1/batches", JSON, FORM[1]) + b'{"a'),
    "an upload of 10 GB": (413, lambda server: head(server, "POST", "/v1/files", *FORM) + BEGUN),
    "a POST to /health": (403, lambda server: head(server, "POST", "/health", *FORM) + BEGUN),
    "chunks to /livez": (
        405,
        lambda server: head(server, "POST", "/livez", JSON, "Transfer-Encoding: chunked") + b"fff\r\na",
    ),
    "a PUT of an unknown address": (404, lambda server: head(server, "PUT", "/v1/nope", JSON, FORM[1]) + b"a"),
}


def others_are_served(server, soon_s=SOON_S):
    """Somebody polls and uploads; each answer comes soon."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {server.key}"
        assert session.get(f"{server.base}/health", timeout=soon_s).json()["service"]
        assert session.get(f"{server.base}/v1/batches", timeout=soon_s).status_code == 200
        files = {"file": ("a.jsonl", b'{"a": 1}\n' * 100_000)}
        sent = session.post(f"{server.base}/v1/files", files=files, data={"purpose": "batch"}, timeout=soon_s)
        assert sent.status_code == 200


@pytest.mark.parametrize("kind", SLOW)
def test_slow_clients_keep_nobody_waiting(server, kind):
    with ExitStack() as clients:
        attackers = [clients.enter_context(server.connect(SLOW[kind](server))) for _ in range(ATTACKERS)]
        others_are_served(server)
        assert len(attackers) == ATTACKERS


AT_ONCE = 256
OVERTAKERS = ("/health", "/v1/files?limit=1")


@pytest.mark.parametrize("kind", ["a download never read", "half an upload"])
@pytest.mark.parametrize("path", OVERTAKERS)
def test_who_comes_behind_many_that_begin_at_once_is_answered_before_most_of_them(server, path, kind):
    """Counted, not timed. A test that is not given the processor for a moment counts too many, so it tries again, and
    often: a server that answers in the order of arrival has begun with all of them at each try."""
    found = [begun_before(server, path, kind) for _ in range(2)]
    while min(found) > AT_ONCE // 2 and len(found) < 30:
        found.append(begun_before(server, path, kind))
    assert min(found) <= AT_ONCE // 2, found


def begun_before(server, path, kind):
    """How many of the slow requests, which all came before, a thread has begun with when this one is answered."""
    expect = "Expect: 100-continue"  # the server's word to go on tells that an upload has begun
    slow = SLOW[kind](server).replace(b"\r\n", f"\r\n{expect}\r\n".encode(), 1)
    with ExitStack() as clients:
        attackers = [clients.enter_context(server.connect()) for _ in range(AT_ONCE)]
        other = clients.enter_context(server.connect())
        begun = select.poll()
        for attacker in attackers:
            begun.register(attacker, select.POLLIN)
        for attacker in attackers:
            attacker.sendall(slow)
        other.sendall(head(server, "GET", path))
        other.settimeout(6 * SOON_S)
        assert other.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
        return len(begun.poll(0))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_waits_for_no_body(server, kind):
    status, sent = REFUSED[kind]
    with server.connect(sent(server)) as client:
        answer = AnswerOf(client)
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        if answer.headers["Content-Type"] == "application/json":
            assert json.loads(answer.body)["error"] or status == 405


def test_who_is_refused_may_go_on_sending_and_reads_the_answer_then(server):
    """As a client that looks for an answer only when it has sent all."""
    with server.connect(head(server, "POST", "/v1/files", *FORM, key=False) + BEGUN) as client:
        for _ in range(1000):
            client.sendall(b"a" * 2**16)
        assert AnswerOf(client).status == 401


def test_refused_clients_keep_nobody_waiting(server):
    _, sent = REFUSED["a body of a refused type"]
    with ExitStack() as clients:
        for _ in range(ATTACKERS):
            clients.enter_context(server.connect(sent(server)))
        others_are_served(server)


def test_a_body_that_is_kept_back_for_the_word_to_go_on_is_asked_for_when_it_is_read(server):
    expect = ("Expect: 100-continue", "Content-Length: 12", JSON)
    with server.connect(head(server, "POST", "/v1/batches", *expect)) as client:
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b'{"a": "bcd"}')
        answer = AnswerOf(client)
        assert (answer.status, answer.headers["Connection"]) == (400, "keep-alive")
    with server.connect(head(server, "POST", "/v1/batches", *expect, key=False)) as client:
        assert AnswerOf(client).status == 401


def test_guessers_keep_nobody_waiting(server):
    with requests.Session() as session:
        page = f"{server.base}/admin/login/"
        session.get(page, timeout=SOON_S)
        form = {"username": "owner", "password": "guess", "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        cookies = session.cookies.get_dict()

    def guess(_):
        return [requests.post(page, data=form, cookies=cookies, timeout=60).status_code for _ in range(2)]

    with ThreadPoolExecutor(ATTACKERS) as pool:
        guesses = pool.map(guess, range(ATTACKERS))
        others_are_served(server, 6 * SOON_S)  # they are 64 threads on the same cores
        statuses = [status for each in guesses for status in each]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) <= 10


def test_each_slow_client_is_given_up(server):
    told = {"nothing": b""}
    with ExitStack() as clients:
        sent = {kind: clients.enter_context(server.connect(SLOW[kind](server))) for kind in SLOW}
        drip = clients.enter_context(server.connect(SLOW["half an upload"](server)))
        started = time.monotonic()
        # Faster than a standstill, and slower than CLIENT_LEAST_BYTES_PER_S.
        while not select.select([drip], [], [], 0.5)[0]:
            assert time.monotonic() < started + CLIENT_TIMEOUT_S + SOON_S, "it is waited for"
            drip.sendall(b"a" * 100)
        assert AnswerOf(drip).status == 408
        unread = select.poll()
        unread.register(sent.pop("a download never read"), 0)
        [(_, happened)] = unread.poll(2 * SOON_S * 1000)
        assert happened & select.POLLHUP  # reset: what it never read is no longer kept for it
        for kind, client in sent.items():
            expected = told.get(kind, b"HTTP/1.1 408")
            if kind == "half a form of the admin":
                expected = b"HTTP/1.1 4"
            assert everything(client)[: len(expected)] == expected, kind
    others_are_served(server)


def test_an_idle_connection_is_kept_for_longer_than_clients_keep_theirs(server):
    with server.connect(head(server, "GET", "/v1/batches")) as client:
        assert AnswerOf(client).headers["Connection"] == "keep-alive"
        time.sleep(3)
        # Two at once, the second one in pieces.
        both = head(server, "GET", "/v1/batches") + head(server, "GET", "/v1/files")
        client.sendall(both[:-7])
        assert AnswerOf(client).status == 200
        client.sendall(both[-7:])
        assert AnswerOf(client).status == 200


def test_the_connections_of_one_address_are_bounded(server):
    """Those of this machine are not."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but those of loopback")
    with ExitStack() as clients:
        first = [clients.enter_context(server.connect(host=address)) for _ in range(8)]
        with server.connect(host=address) as refused:
            answer = AnswerOf(refused)
            assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
            assert json.loads(answer.body)["error"]["type"] == "rate_limit_error"
        first[0].sendall(head(server, "GET", "/livez").replace(b"localhost", b"127.0.0.1"))
        assert AnswerOf(first[0]).status == 200
        others_are_served(server)


def own_address():
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return None if probe.getsockname()[0].startswith("127.") else probe.getsockname()[0]
    return None


class AnswerOf:
    """The next answer on a connection, whose length is told."""

    def __init__(self, client):
        content = b""
        while b"\r\n\r\n" not in content:
            piece = client.recv(1)
            assert piece, f"the connection ended after {content!r}"
            content += piece
        first, *fields = content.decode().strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(field.split(": ", 1) for field in fields)
        self.body = b""
        while len(self.body) < int(self.headers.get("Content-Length", 0)):
            piece = client.recv(2**16)
            assert piece, "the body is not whole"
            self.body += piece


def everything(client):
    """What comes until the connection is closed."""
    client.settimeout(CLIENT_TIMEOUT_S + 2 * SOON_S)
    content = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(2**20):
            content += piece
    return content
