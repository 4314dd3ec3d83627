"""What watches over the processes: who hangs, and who does not."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import pytest

from batchserver import supervisor
from batchserver.supervisor import STARTUP_S, Child, Question, Supervisor, Vitals, keep_short
from batchserver.worker import LoopWatch
from common import signs_of_life
from tests.stack import eventually

HUNG_AFTER_S = 60.0


class Watched:
    """A child's pipe and what is made of it; `pid` is this process, which leads its group or not."""

    def __init__(self):
        self.signs, self.told = os.pipe()
        os.set_blocking(self.signs, False)
        self.pid = os.getpgid(0)
        self.vitals = Vitals(self.pid, HUNG_AFTER_S, self.signs, None)

    def says(self, what, pid=None):
        os.write(self.told, f"{pid or self.pid} {what}\n".encode())

    def look(self, *, for_s=0.0, was_away=False):
        """What it is told at the first look that tells something within so many seconds of looking."""
        for _ in range(int(for_s) or 1):
            if told := self.vitals.look(1.0, was_away=was_away):
                return told
        return ""


@pytest.fixture
def watched():
    made = Watched()
    yield made
    os.close(made.signs)
    os.close(made.told)


def test_who_gives_signs_lives(watched):
    for _ in range(300):
        watched.says("alive")
        assert watched.look() == ""


def test_who_is_silent_hangs(watched):
    watched.says("alive")
    assert watched.look(for_s=60) == ""
    assert watched.look(for_s=2) == f"process {watched.pid} gave no sign of life for 60 s"
    # If it could not be killed at once, it is told again later.
    assert watched.look(for_s=60) == ""
    assert watched.look(for_s=2)


def test_before_the_first_sign_there_is_more_time(watched):
    assert watched.look(for_s=STARTUP_S + HUNG_AFTER_S) == ""
    assert watched.look(for_s=2)


def test_a_forked_process_hangs_while_its_parent_lives(watched):
    child = os.getpid()  # of the same group as its leader
    for _ in range(59):
        watched.says("alive")
        watched.says("alive", pid=child)
        assert watched.look() == ""
    heard = ""
    for _ in range(62):
        watched.says("alive")
        heard = heard or watched.look()
    assert heard == f"process {child} gave no sign of life for 60 s" or child == watched.pid


def test_a_forked_process_that_is_done_or_dead_does_not_hang(watched):
    gone = 2**22 - 1  # no process has this id
    watched.says("alive", pid=os.getpid() if os.getpid() != watched.pid else gone)
    watched.says("done", pid=os.getpid() if os.getpid() != watched.pid else gone)
    watched.says("alive", pid=gone)
    for _ in range(300):
        watched.says("alive")
        assert watched.look() == ""


def test_another_process_with_the_id_of_a_dead_one_does_not_count(watched):
    watched.says("alive", pid=1)  # of another group
    for _ in range(100):
        watched.says("alive")
        assert watched.look() == ""


def test_signs_that_came_while_nobody_looked_are_not_taken_for_silence(watched):
    """We stood still: the pipe is full, and what else was said is lost."""
    os.set_blocking(watched.told, False)
    with suppress(BlockingIOError):
        while True:
            watched.says("alive", pid=os.getpid())
    assert watched.look(was_away=True) == ""
    for _ in range(100):
        watched.says("alive")
        assert watched.look() == ""


def test_a_message_may_come_in_two_pieces(watched):
    os.write(watched.told, f"{watched.pid} al".encode())
    watched.look()
    os.write(watched.told, b"ive\n")
    assert watched.look(for_s=60) == ""


def test_a_sign_is_given_once_a_second_while_at_work(watched, monkeypatch):
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    monkeypatch.setattr(signs_of_life, "_is_at_work", False)
    signs_of_life.give_to(os.dup(watched.told))
    signs_of_life.alive()  # idle
    signs_of_life.begin()
    signs_of_life.alive()
    signs_of_life.alive()
    monkeypatch.setattr(signs_of_life, "_given_at", time.monotonic() - 1.1)
    signs_of_life.alive()
    signs_of_life.done()
    signs_of_life.alive()
    assert os.read(watched.signs, 1000).decode() == f"{os.getpid()} alive\n" * 2 + f"{os.getpid()} done\n"
    os.close(signs_of_life._pipe)


@pytest.mark.parametrize("descriptor", [0, 10**6, -1])
def test_without_a_pipe_no_sign_is_given(descriptor, monkeypatch):
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    signs_of_life.give_to(descriptor)
    assert signs_of_life._pipe is None
    signs_of_life.begin()
    signs_of_life.done()


def test_nobody_who_reads_the_signs_is_no_error(monkeypatch):
    signs, told = os.pipe()
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    signs_of_life.give_to(told)
    os.close(signs)
    signs_of_life.begin()
    signs_of_life.done()
    os.close(told)


# The loop of a worker's main process


def test_a_loop_that_stands_still_is_silent():
    loop = LoopWatch(silent_after_s=0.05)
    assert loop.is_alive
    time.sleep(0.1)
    assert not loop.is_alive
    loop.go_round()
    assert loop.is_alive


def test_a_loop_that_waits_for_the_broker_is_not_silent():
    loop = LoopWatch(silent_after_s=0.0)
    assert not loop.is_alive
    with loop.excused():
        assert loop.is_alive
    assert not loop.is_alive
    loop.excuse()
    assert loop.is_alive


# A web server


@pytest.fixture
def listener():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        yield listening


def asked(question, times=50):
    for _ in range(times):
        question.look(1.0)
        time.sleep(0.005)


def test_a_web_server_that_answers_is_asked_again_after_a_pause(listener, monkeypatch):
    question = Question(listener.getsockname())
    asked(question, 3)
    connection, _ = listener.accept()
    assert connection.recv(1000).startswith(b"GET /livez HTTP/1.1\r\n")
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    eventually(lambda: question.look(1.0) or question.unanswered_s == 0.0, what="an answer")
    asked(question)
    assert question.unanswered_s == 0.0
    question._next_at = 0.0
    asked(question, 3)
    assert question.unanswered_s == 3.0
    connection.close()
    question._close()


def test_a_web_server_that_does_not_answer_is_waited_for(listener):
    """Its kernel takes the connection, and nobody reads from it."""
    question = Question(listener.getsockname())
    asked(question)
    assert question.unanswered_s == 50 - STARTUP_S
    question._close()


def test_a_web_server_that_does_not_listen_or_hangs_up_does_not_answer(listener):
    address = listener.getsockname()
    question = Question(address)
    asked(question, 2)
    connection, _ = listener.accept()
    connection.close()
    asked(question, 10)
    listener.close()
    asked(question, 10)
    assert question.unanswered_s == 22 - STARTUP_S
    question._close()


# Real processes


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("kind", ["silent", "stopped"])
def test_a_process_that_hangs_is_killed_with_what_it_forked_and_started_again(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "STARTUP_S", 0.0)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.02)
    forks = tmp_path / "forks"
    program = (
        "import os, time\n"
        f"if not os.fork():\n    open({str(forks)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(60)\n"
    )
    child = Child("hanging", [sys.executable, "-S", "-c", program], hung_after_s=0.3, gives_signs=kind == "silent")
    watching = Supervisor()
    watching.children = [child]
    child.start()
    first = child.process.pid
    thread = threading.Thread(target=watching.watch)
    thread.start()
    try:
        eventually(lambda: forks.exists() and forks.read_text().endswith("\n"), what="its fork")
        if kind == "stopped":
            os.kill(first, signal.SIGSTOP)
        eventually(lambda: child.process.pid != first and forks.read_text().count("\n") == 2, what="a new process")
        [fork, _] = forks.read_text().split()
        eventually(lambda: not _is_there(int(fork)), what="the end of what it had forked")
    finally:
        watching.stop_signals = 2
        thread.join()
        watching.stop()
        if child.signs is not None:
            os.close(child.signs)


def _is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Logs of its own


def test_a_log_is_kept_short(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "MOST_LOG_BYTES", 1000)
    log = tmp_path / "chatty.log"
    keep_short(log)  # none is there yet
    with log.open("ab", buffering=0) as output:  # as a child has it open
        for number in range(100):
            output.write(b"%050d\n" % number)
            keep_short(log)
    files = {each.name: each.stat().st_size for each in tmp_path.glob("chatty*")}
    assert set(files) == {"chatty.log", "chatty.log.1"}
    assert max(files.values()) < 1100
    older = log.with_name("chatty.log.1").read_bytes()
    assert (older + log.read_bytes()).endswith(b"".join(b"%050d\n" % number for number in range(80, 100)))


def test_the_file_that_it_writes_to_itself_is_kept_short_too(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "MOST_LOG_BYTES", 100)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.01)
    log = tmp_path / "run.log"
    log.write_text("x" * 101)
    watching = Supervisor(own_log=log)
    thread = threading.Thread(target=watching.watch)
    thread.start()
    try:
        eventually(lambda: log.stat().st_size == 0, what="a short log")
    finally:
        watching.stop_signals = 1
        thread.join()
