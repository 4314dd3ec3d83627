"""What watches over the processes: who hangs, and who does not."""

import logging
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from batches import tasks
from batchserver import locks, supervisor
from batchserver.gunicorn_worker import Worker
from batchserver.request_threads import Queue
from batchserver.supervisor import STARTUP_S, Child, Supervisor, Vitals, keep_short
from batchserver.worker import LoopWatch
from common import signs_of_life
from tests.stack import ROOT, eventually

HUNG_AFTER_S = 60.0


class Watched:
    """A child's pipe and what is made of it; `pid` is this process, which leads its group or not."""

    def __init__(self):
        self.signs, self.told = os.pipe()
        os.set_blocking(self.signs, False)
        try:
            os.getpgid(os.getpgid(0))
        except ProcessLookupError:  # whoever started the tests has ended
            os.setpgid(0, 0)
        self.pid = os.getpgid(0)
        self.vitals = Vitals(self.pid, HUNG_AFTER_S, self.signs)

    def says(self, what, pid=None):
        os.write(self.told, f"{pid or self.pid} {what}\n".encode())

    def look(self, *, for_s=0.0):
        """What it is told at the first look that tells something within so many seconds of looking."""
        for _ in range(int(for_s) or 1):
            if told := self.vitals.look(1.0):
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


def test_that_a_process_is_done_may_be_lost_while_nobody_looked(watched):
    """We stood still for so long that the pipe is full."""
    child = os.getpid()
    os.set_blocking(watched.told, False)
    with suppress(BlockingIOError):
        while True:
            watched.says("alive", pid=child)
    assert watched.look() == ""
    for _ in range(100):
        watched.says("alive")
        assert watched.look() == ""


@pytest.mark.parametrize("absence_s", [10.5, 60.0, 3600.0])
def test_a_forked_process_that_hangs_while_nobody_looks_is_found_afterwards(watched, monkeypatch, absence_s):
    """The machine slept, or had no time for us."""
    monkeypatch.setattr(watched.vitals, "_is_ours", lambda pid: True)
    killed = []
    monkeypatch.setattr(supervisor, "_kill_group", killed.append)
    process = SimpleNamespace(pid=watched.pid, poll=lambda: None)
    child = Child("worker", [], process=process, vitals=watched.vitals)
    watching = Supervisor()
    fork = watched.pid + 1
    watched.says("alive", pid=fork)
    watching._look_after(child, 0.2)
    watching._look_after(child, absence_s)
    for _ in range(57):
        watched.says("alive")
        watching._look_after(child, 1.0)
    assert not killed
    for _ in range(5):
        watched.says("alive")
        watching._look_after(child, 1.0)
    assert killed == [child]


def test_a_message_may_come_in_two_pieces(watched):
    os.write(watched.told, f"{watched.pid} al".encode())
    watched.look()
    os.write(watched.told, b"ive\n")
    assert watched.look(for_s=60) == ""


def test_a_sign_is_given_once_in_a_while_at_work(watched, monkeypatch):
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    monkeypatch.setattr(signs_of_life, "_is_at_work", False)
    signs_of_life.give_to(os.dup(watched.told))
    signs_of_life.alive()  # idle
    signs_of_life.begin()
    signs_of_life.alive()
    signs_of_life.alive()
    monkeypatch.setattr(signs_of_life, "_given_at", time.monotonic() - signs_of_life.EVERY_S)
    signs_of_life.alive()
    signs_of_life.done()
    signs_of_life.alive()
    assert os.read(watched.signs, 1000).decode() == f"{os.getpid()} alive\n" * 2 + f"{os.getpid()} done\n"
    os.close(signs_of_life._pipe)


def test_0_means_that_nobody_watches_and_not_the_standard_input(watched, monkeypatch):
    """Which is a pipe in `command | worker`."""
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    kept = os.dup(0)
    os.dup2(watched.told, 0)
    try:
        signs_of_life.give_to(0)
        assert signs_of_life._pipe is None
    finally:
        os.dup2(kept, 0)
        os.close(kept)


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
def web_worker(watched, monkeypatch, settings):
    """gunicorn's worker as it is before it takes connections; what gunicorn's main process would do is left out."""
    monkeypatch.setattr(signs_of_life, "_pipe", None)
    monkeypatch.setattr(signs_of_life, "_of", None)
    monkeypatch.setattr(signs_of_life, "_is_at_work", False)
    config = Config()
    config.set("threads", 2)
    made = Worker(1, watched.pid, [], None, 60, config, logging.getLogger("gunicorn.error"))
    settings.SIGNS_OF_LIFE_FD = os.dup(watched.told)
    made.tpool, made.poller = made.get_thread_pool(), selectors.DefaultSelector()
    made.method_queue.init()
    monkeypatch.setattr(made, "is_parent_alive", lambda: True)
    yield made
    made.tmp.close()
    os.close(settings.SIGNS_OF_LIFE_FD)


def test_a_web_server_whose_threads_are_all_busy_gives_signs(watched, web_worker, monkeypatch):
    """As with chats and uploads that take minutes, or a database that hangs."""
    monkeypatch.setattr(signs_of_life, "EVERY_S", 0.0)
    monkeypatch.setattr(web_worker, "wait_for_and_dispatch_events", lambda timeout: time.sleep(0.001))
    end = threading.Event()
    busy = [web_worker.tpool.submit(Queue("any", 5), end.wait, 60) for _ in range(5)]
    thread = threading.Thread(target=web_worker.run)
    thread.start()
    try:
        for _ in range(200):
            assert select.select([watched.signs], [], [], 60)[0]
            assert watched.look() == ""
        assert not any(each.done() for each in busy)
        # The signs are those of gunicorn's main process, which is the one that is watched.
        assert watched.vitals._silent_s.keys() == {watched.pid}
    finally:
        web_worker.alive = False
        end.set()
        thread.join()


def test_a_web_server_whose_loop_stands_still_is_silent(watched, web_worker):
    signs_of_life.give_to(os.dup(watched.told), of=watched.pid)
    signs_of_life.begin()
    web_worker.notify()
    assert watched.look(for_s=60) == ""
    assert watched.look(for_s=2) == f"process {watched.pid} gave no sign of life for 60 s"
    os.close(signs_of_life._pipe)


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


@contextmanager
def playing(program):
    """The program in a process of its own, which is killed if it takes a minute."""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        killer = threading.Timer(60.0, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()


WATCHING = """
import sys
from batchserver import supervisor
supervisor.LOOK_EVERY_S = 600.0
supervisor.FIRST_BACKOFF_S = supervisor.MOST_BACKOFF_S = 0.01
watching = supervisor.Supervisor()
watching.listen()
watching.be_woken()
watching.children = [supervisor.Child("short", [sys.executable, "-S", "-c", "print('here', flush=True)"])]
for child in watching.children:
    child.start()
watching.watch()
print("stopped", flush=True)
"""


@pytest.mark.usefixtures("processes")
def test_a_child_is_stopped_by_its_own_signal(tmp_path):
    """One that is deaf to the usual one, and keeps nothing, is not waited for."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    child = Child("deaf", [sys.executable, "-c", deaf], log=log, stop_signal=signal.SIGKILL)
    watching = Supervisor()
    watching.children.append(child)
    child.start()
    eventually(lambda: "up" in log.read_text(), what="the child's start")
    began = time.monotonic()
    watching.stop()
    assert time.monotonic() - began < child.grace_s / 2
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("processes")
def test_the_end_of_a_child_and_the_order_to_stop_are_seen_at_once():
    """It would look for them once in ten minutes."""
    with playing(WATCHING) as process:
        for _ in range(3):
            assert process.stdout.readline() == "here\n"
        process.terminate()
        assert "stopped\n" in process.stdout.read()


FORKING = """
import os, signal, sys, time
from batchserver import supervisor

supervisor.FIRST_BACKOFF_S = supervisor.MOST_BACKOFF_S = 0.01
imported = object()

def main(told):
    os.write(told, f"{os.getpid()} alive\\n".encode())
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT)]
    is_new = handlers == [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]
    is_new = is_new and not signal.pthread_sigmask(signal.SIG_BLOCK, ()) and sys.stdin.read() == ""
    command = open("/proc/self/cmdline").read().rstrip("\\0")
    print(os.getpid(), os.getsid(0), os.getcwd(), os.environ["MINE"], is_new, sys.argv, command, sep="|", flush=True)
    time.sleep(600)

watching = supervisor.Supervisor()
watching.listen()
watching.be_woken()
command = [sys.executable, "-m", "some.module", "-Q", "queue"]
watching.children = [
    supervisor.Child("fork", command, main=main, gives_signs=True, directory="/", environment={"MINE": "yes"})
]
for child in watching.children:
    child.start()
watching.watch()
watching.stop()
print("stopped", watching.children[0].process.returncode, os.environ.get("MINE"), flush=True)
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the command is run")
def test_a_fork_is_as_if_its_command_had_been_run_and_is_started_again():
    with playing(FORKING) as process:
        for _ in range(3):
            pid, session, *told = process.stdout.readline().strip().split("|")
            assert pid == session != str(process.pid)
            assert told == ["/", "yes", "True", "['some.module', '-Q', 'queue']", "some.module -Q queue"]
            os.kill(int(pid), signal.SIGKILL)
        [pid, *_] = process.stdout.readline().split("|")
        process.terminate()
        assert process.stdout.read() == f"stopped {-signal.SIGTERM} None\n"
        assert not _is_there(int(pid))


@pytest.mark.usefixtures("processes")
def test_a_fork_holds_no_lock_of_the_process_that_it_came_from(tmp_path):
    lock = locks.take(tmp_path / "lock")
    is_free, told = os.pipe()
    fork = os.fork()
    if not fork:
        os.write(told, b"1")  # and stays
        signal.pause()
    try:
        assert os.read(is_free, 1)
        assert locks.is_taken(tmp_path / "lock")
        lock.close()
        assert not locks.is_taken(tmp_path / "lock")
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
        os.close(is_free)
        os.close(told)


def test_workers_that_are_forked_from_one_process_have_flags_of_their_own():
    before = tasks.shutdown, tasks.hold
    try:
        before[0].value = before[1].value = 1
        tasks.begin_worker()
        assert (tasks.shutdown.value, tasks.hold.value) == (0, 0)
        tasks.shutdown.value = 1
        tasks.begin_worker()
        assert tasks.shutdown.value == 0
    finally:
        tasks.shutdown, tasks.hold = before
        tasks.shutdown.value = tasks.hold.value = 0


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
