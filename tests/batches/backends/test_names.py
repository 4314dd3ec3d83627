"""Requests to a model server that has a name, on a machine whose DNS does not answer."""

import subprocess
import sys

import pytest

from tests.stack import ROOT

# Mounts and a network of its own, so that /etc/hosts and /etc/resolv.conf can be other ones.
MACHINE = ("unshare", "--user", "--map-root-user", "--mount", "--net")

# A name server that takes questions and answers none; a model server; then requests to it, one after the other, as a
# drive with one slot sends them. Prints what became of each.
PLAY = """
import fcntl, socket, struct, subprocess, sys, threading, time
from pathlib import Path
from batches.backends.connection import Server
from batches.backends.transfers import Transfers

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
directory, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for file, text in {"resolv.conf": "nameserver 127.0.0.1\\n", "hosts": "127.0.0.1 localhost gpubox\\n"}.items():
    (directory / file).write_text(text)
    subprocess.run(["mount", "--bind", str(directory / file), f"/etc/{file}"], check=True)

listening = socket.create_server(("127.0.0.1", 0))

def serve():
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")

threading.Thread(target=serve, daemon=True).start()
base_url = f"http://{name}:{listening.getsockname()[1]}"
transfers = Transfers(Server(base_url))
for number in range(count):
    is_done = threading.Event()
    became = []
    transfers.post(number, base_url + "/v1/chat/completions", b"{}", lambda what: (became.append(what), is_done.set()))
    if sys.argv[4:] == ["cut"]:
        time.sleep(0.2)
        transfers.cut(number)
    is_done.wait()
    print(type(became[0]).__name__, flush=True)
transfers.close()
"""


@pytest.fixture
def play(tmp_path, processes):
    """What became of so many requests to the name."""
    if subprocess.run([*MACHINE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may make no namespaces (unshare)")

    def run(*arguments):
        command = [*MACHINE, sys.executable, "-c", PLAY, str(tmp_path), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout.split()

    return run


def test_a_name_that_the_hosts_file_knows_needs_no_name_server(play):
    """It knows one of the two kinds of addresses, and who asks for each by itself asks the name server for the other.
    Docker writes such a line for `host.docker.internal`."""
    assert play("gpubox", "40") == ["Answer"] * 40


def test_a_name_that_nobody_tells_is_given_up_like_a_connection(play):
    assert play("away", "1") == ["NeverSent"]


def test_a_request_is_cut_while_its_name_is_asked_for(play):
    assert play("away", "1", "cut") == ["Cut"]
