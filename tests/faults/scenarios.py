"""What goes wrong: a table of scenarios, each a small function that hurts a running server. Submitting work is part of
it; when the function returns, the fault is over and the server has 60 s to put everything in order."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from batches import leases
from batches.dispatch.periodic_checks import LOOK_EVERY_S
from files_api import storage_id
from tests.fake_backend import Action, error_body
from tests.faults import invariants
from tests.faults.world import CONTAINER, FINAL, READ_S, Cable, Postgres, World
from tests.s3 import BUSY as SLOW_DOWN
from tests.s3 import Fault
from tests.s3 import program as s3_program
from tests.stack import ROOT, eventually

SQLITE, BOTH = ("sqlite",), ("sqlite", "postgres")


@dataclass(frozen=True)
class Scenario:
    """`act` is run in a world with these failpoints and this environment."""

    name: str
    act: Callable[[World], None]
    failpoints: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    quick: tuple[str, ...] = ()  # the databases on which `script/test` plays it; `--faults` plays all on both
    disk_mb: int = 0
    own_clock: bool = False
    in_s3: bool = False  # files lie there, and not on the disk
    only_on: str = ""  # the database, where the fault is its own
    needs: Callable[[], bool] = lambda: True  # what it takes is there
    is_long: bool = False  # minutes


@dataclass
class Outcome:
    """By invariant, what is wrong; empty if all held. `error` is set if the scenario itself did not get through."""

    wrong: dict[str, str] = field(default_factory=dict)
    error: str = ""
    took_s: float = 0.0
    log: str = ""

    def cell(self, column: str) -> str:
        if column == "played":
            return "FAILS" if self.error else "ok"
        return "FAILS" if column in self.wrong else "ok"

    @property
    def is_good(self) -> bool:
        return not self.wrong and not self.error

    def __str__(self) -> str:
        problems = [f"{name}: {problem}" for name, problem in self.wrong.items()]
        return "; ".join([*filter(None, [self.error]), *problems]) or "all held"


def run(scenario: Scenario, postgres: Postgres | None, *, root: Path = ROOT, reads_within_s: float = READ_S) -> Outcome:
    """Play a scenario in a world of its own and check every invariant. `root` is the source tree that is run."""
    outcome = Outcome()
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="fault-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        world = World(
            directory,
            postgres=postgres,
            failpoints=scenario.failpoints,
            root=root,
            disk_mb=scenario.disk_mb,
            own_clock=scenario.own_clock,
            in_s3=scenario.in_s3,
            reads_within_s=reads_within_s,
            **scenario.environment,
        )
        try:
            stack.enter_context(world)
            try:
                scenario.act(world)
            except AssertionError as error:
                # A bare assert says nothing outside pytest: then its own line has to.
                outcome.error = str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)
            world.fault_ended_at = time.monotonic()
            for name, invariant in invariants.ALL.items():
                if problem := invariant(world):
                    outcome.wrong[name] = problem
        except Exception as error:  # noqa: BLE001  (a scenario that breaks is a row of the table, not its end)
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.log = world.server.log.read_text() if world.server.log.exists() else ""
    outcome.took_s = time.monotonic() - started
    return outcome


# kill -9


def _killed_at_failpoints(world: World) -> None:
    world.submit(20)
    world.await_kills()


def _web_killed_at_failpoints(world: World) -> None:
    with world.outage():
        world.submit(5)
        world.await_kills()


def _in_each_phase(hurt: Callable[[World], None]) -> Callable[[World], None]:
    """Do it while a worker is held up for a moment in each phase of one batch."""

    def act(world: World) -> None:
        world.submit(20)
        for item in PHASES.split(","):
            world.await_failpoint(item.partition(":")[0])
            hurt(world)

    return act


def _each_process_in_turn(world: World) -> None:
    """At any moment, and for the workers now the pool's child alone and now the whole."""
    batch = world.submit(30)
    world.await_lines(2, batch)
    for hurt in (
        lambda: world.kill("-Q inference"),
        lambda: world.kill("-Q control"),
        world.kill_broker,
        world.kill_web,
        lambda: os.kill(world.pids_of("-Q inference")[-1], signal.SIGKILL),
        world.kill_all,
    ):
        hurt()
        time.sleep(1.0)
    world.kills += 1


def _hundred_random_kills(world: World) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    world.backend.delay_s = 0.3  # so that lines are left after the last kill, however fast all of it goes on
    world.lines_per_kill = 66  # answers that come this fast are stored in groups
    batch = world.submit(2000)
    victims = ["-Q inference"] * 4 + ["-Q control"] * 2 + ["valkey", "gunicorn"]
    try:
        with world.outage():
            while world.kills < 100 and world.batch(batch).get("status") not in FINAL:
                time.sleep(chance.uniform(0.5, 4.0))
                victim = chance.choice([*victims, "one child"])
                if victim == "one child":
                    os.kill(world.pids_of("-Q inference")[-1], signal.SIGKILL)
                    world.kills += 1
                else:
                    world.kill(victim)
        assert world.kills == 100, f"the batch was over after {world.kills} kills"
        world.backend.delay_s = 0.1
        world.await_status("completed", batch, within_s=600)
    except AssertionError as error:
        raise AssertionError(f"{error} (seed {seed})") from error


def _a_line_that_takes_its_worker_along(world: World) -> None:
    """As one whose answer makes the worker run out of memory, ten times. It holds up no other, and is not given up: a
    worker's death says nothing of the line."""
    kills = 10
    world.backend.on("b1-2", *[Action(hang=True)] * kills)
    batch = world.submit(6)
    for number in range(1, kills + 1):
        eventually(lambda wanted=number: world.backend.arrived().count("b1-2") >= wanted, what="the line")
        if number == kills:
            assert world.batch(batch)["request_counts"]["completed"] == 5
        world.kill("-Q inference")


def _cancelled_and_killed(world: World) -> None:
    batch = world.submit(40)
    world.await_lines(3, batch)
    world.cancel(batch)
    world.kill_all()


def _window_over_while_dead(world: World) -> None:
    world.backend.delay_s = 5.0
    batch = world.submit(40, window="1m", status="expired")
    world.await_lines(3, batch)
    world.kill("-Q inference")
    world.kill("-Q control")
    world.await_status("expired", batch, within_s=90)


def _stopped_in_mid_line(world: World) -> None:
    world.backend.delay_s = 0.5
    batch = world.submit(12)
    world.await_lines(3, batch)
    with world.outage():
        assert world.server.stop() == 0
        world.server.start()


# A process that is declared dead and comes back


def _zombie_writes(world: World) -> None:
    """A worker stops with an answer in hand, another finishes the batch, and the first one wakes."""
    world.start_worker("inference")
    batch = world.submit(8)
    stopped = world.await_failpoint("after_answer")
    world.let_leases_expire()
    world.await_lines(8, batch)
    # A line that is written again before the watcher saw it finished would look as if it were written once.
    eventually(lambda: len(world.notes.finished) == 8, what="the watcher's look at all lines")
    # Until its next look a drive that wakes sends the lines that it has in its buffer.
    time.sleep(LOOK_EVERY_S)
    world.wake(stopped)
    time.sleep(2.0)


def _zombie_finalizes(world: World) -> None:
    """A finalizer stops with its file written, another one begins, and the first one wakes while that is at it."""
    world.hold_back("before_finalize_write")
    world.start_worker("control")
    batch = world.submit(8)
    first = world.await_failpoint("after_result_file")
    world.arm("before_finalize_write")
    world.let_leases_expire()
    second = world.await_failpoint("before_finalize_write")
    world.wake(first)
    time.sleep(2.0)
    status = world.batch(batch)["status"]
    world.wake(second)
    assert status == "finalizing", f"the finalizer that was declared dead moved the batch to {status}"


def _sleeps_past_its_lease(failpoint: str, queue: str) -> Callable[[World], None]:
    """By the clock, and long enough for another to finish the batch."""

    def act(world: World) -> None:
        world.start_worker(queue)
        batch = world.submit(8)
        stopped = world.await_failpoint(failpoint)
        time.sleep(leases.LIFETIME.total_seconds() + 2)
        world.await_status("completed", batch)
        time.sleep(3.0)
        world.wake(stopped)
        time.sleep(3.0)

    return act


def _hangs_for_good(world: World) -> None:
    """It is stopped in mid-line and nobody wakes it: the supervisor kills it and what it forked, as a kill -9 does."""
    batch = world.submit(8)
    world.await_failpoint("after_answer")
    world.stops += 1
    eventually(lambda: "it is killed" in world.server.log.read_text(), within_s=100, what="the end of what hangs")
    world.await_status("completed", batch)


def _frozen_in_mid_store(world: World) -> None:
    """By SIGSTOP, with the rows of its batch locked. The other worker goes on with both batches meanwhile, and the tick
    with everything else. The one that is stopped wakes, and finds its transaction ended."""
    world.start_worker("inference")
    batches = [world.submit(8), world.submit(8)]
    stopped = world.await_failpoint("mid_store")
    frozen_at = time.monotonic()
    other = world.submit(3)
    world.await_status("completed", other, within_s=45)
    for batch in batches:
        world.await_status("completed", batch, within_s=leases.LIFETIME.total_seconds() + 25)
    took_s = time.monotonic() - frozen_at
    assert _is_stopped(stopped), f"it was not stopped any more after {took_s:.0f} s"
    world.wake(stopped)
    time.sleep(3.0)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _cable_pulled_in_mid_store(world: World) -> None:
    """The worker of another host is cut off from Postgres with the rows of its batch locked: nobody tells Postgres, nor
    the worker. The other worker finishes everything meanwhile."""
    others = world.server.find("-Q inference")
    world.cable = Cable(world.database_url)
    worker = world.start_worker("inference", DATABASE_URL=world.cable.url, FAILPOINTS="mid_store:sleep=2@2")
    eventually(lambda: _has_forked(worker.pid), what="a worker that has started")
    for pid in others:  # of two workers on one backend one drives: this one
        os.kill(pid, signal.SIGSTOP)
    batches = [world.submit(40), world.submit(40)]
    world.await_failpoint("mid_store")
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    world.cable.cut()
    for batch in batches:
        world.await_status("completed", batch, within_s=leases.LIFETIME.total_seconds() + 25)
    world.stops += 1
    world.cable.mend()
    world.submit(3)


def _host_without_files(world: World) -> None:
    """A host joins whose mount of the files is missing, gets it, and loses it in the middle of a batch."""
    world.submit(1)
    host = world.directory / "host"
    host.mkdir()
    files = host / "files"
    broker = f"redis+socket://{world.server.broker_socket}"
    elsewhere = {"DATA_DIR": str(host), "CELERY_BROKER_URL": broker, "DATABASE_URL": world.rows.url}
    files.mkdir()
    assert world.start_worker("inference", **elsewhere).wait(30) == 1, "a worker without the files has started"
    assert f"(here it is {files})" in world.server.log.read_text()
    files.rmdir()
    files.symlink_to(world.server.data_dir / "files")
    workers = [world.start_worker(queue, **elsewhere) for queue in ("inference", "control")]
    for worker in workers:
        eventually(lambda worker=worker: _has_forked(worker.pid), what="a worker that has started")
    batches = [world.submit(40), world.submit(40)]
    world.await_lines(5, batches[0])
    files.unlink()
    files.mkdir()
    batches.append(world.submit(10))
    eventually(lambda: "takes no work" in world.server.log.read_text(), what="the pause of the worker")
    for batch in batches:
        world.await_status("completed", batch)
    assert not any(files.iterdir())
    files.rmdir()
    files.symlink_to(world.server.data_dir / "files")
    eventually(lambda: "takes work again" in world.server.log.read_text(), what="the end of the pause")
    world.submit(10)
    assert [worker.poll() for worker in workers] == [None, None]


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _has_forked(pid: int) -> bool:
    return bool(_children(pid))


def _clocks_of_hosts(world: World) -> None:
    """The clock of the server is ahead of the database's, and that of another host behind. No stamp is of theirs."""
    world.step_clock(300)
    world.stops -= 1  # the database's clock is another one: no lease seems to be over
    world.start_worker("inference", **world.clock_of_its_own(-300))
    world.start_worker("control", **world.clock_of_its_own(-300))
    batches = [world.submit(12), world.submit(12)]
    world.await_lines(4, batches[0])
    world.kill("-Q inference")
    for batch in batches:
        world.await_status("completed", batch)
    for table, column in STAMPS:
        off = f"{column} > now() + interval '1 second' OR {column} < now() - interval '3 minutes'"
        assert not world.rows.all(f"SELECT {column} FROM {table} WHERE {off}"), f"{table}.{column} is of another clock"


STAMPS = (
    *(("batches_backend", each) for each in ("worker_seen_at", "seen_at")),
    *(("batches_batch", each) for each in ("created_at", "in_progress_at", "completed_at", "tidied_at")),
    *(("batches_line", "finished_at"), ("batches_pulse", "at"), ("files_api_file", "created_at")),
)


def _ended_by_remote_control(world: World) -> None:
    """As a page of Flower does it: the calls are handed back within seconds, and the supervisor starts another one."""
    world.backend.delay_s = 90.0
    world.submit(2)
    eventually(lambda: world.backend.seen, what="a line at the backend")
    world.stops += 1
    [first, *_] = world.pids_of("-Q inference")
    command = [sys.executable, "-m", "celery", "--app", "batchserver", "control", "shutdown"]
    told = {"env": os.environ | world.server.environment, "cwd": world.server.root}
    subprocess.run([*command, "--destination", f"inference@{socket.gethostname()}"], capture_output=True, **told)
    eventually(lambda: not Path(f"/proc/{first}").exists(), within_s=12, what="the worker's end")
    world.backend.delay_s = 0.15


def _yesterdays_worker(world: World) -> None:
    """Workers of the version before are beside those of today, on today's tables; both kinds work on the batches."""
    old = world.directory / "yesterday"
    old.mkdir()
    archive = subprocess.run(["git", "archive", YESTERDAY], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=old, input=archive.stdout, check=True)
    # They were started before the tables were changed.
    known = {f"{path.parent.parent.name}.{path.stem}" for path in old.glob("*/migrations/0*.py")}
    labels = {"common": "batchserver"}
    known = {f"{labels.get(app, app)}.{name}" for app, name in (each.split(".") for each in known)}
    rows = world.rows.all("SELECT app, name FROM django_migrations")
    ours = ("batches", "batchserver", "files_api")
    new = [(app, name) for app, name in rows if app in ours and f"{app}.{name}" not in known]
    for app, name in new:
        world.rows.execute(f"DELETE FROM django_migrations WHERE app = '{app}' AND name = '{name}'")
    workers = [world.start_worker(queue, root=old) for queue in ("inference", "control")]
    for worker in workers:
        eventually(lambda worker=worker: _has_forked(worker.pid), what="a worker that has started")
    for app, name in new:
        now = "now()" if world.rows.is_postgres else "CURRENT_TIMESTAMP"
        world.rows.execute(f"INSERT INTO django_migrations (app, name, applied) VALUES ('{app}', '{name}', {now})")
    batches = [world.submit(30) for _ in range(3)]
    for batch in batches:
        world.await_status("completed", batch)
    assert all(worker.poll() is None for worker in workers), "a worker of yesterday has ended"


# The last version whose tables were others.
YESTERDAY = "2deea14"


def _has_yesterday() -> bool:
    """A clone without history does not."""
    known = subprocess.run(["git", "cat-file", "-e", f"{YESTERDAY}^{{commit}}"], cwd=ROOT, capture_output=True)
    return known.returncode == 0


def _three_drives(world: World) -> None:
    """They share the window and the loaded model; each is killed at a step of its own."""
    world.lines_per_kill = 4
    world.submit(20)
    world.submit(20)
    world.await_kills()


def _two_workers(world: World) -> None:
    world.start_worker("inference")
    world.submit(30)
    world.submit(30)


def _drive_of_another_container_dies(world: World) -> None:
    """Its process id says nothing to the worker that stands by, which takes over when the drive falls silent: two or
    three seconds after its death, and long before its lease is over."""
    others = world.server.find("-Q inference")
    container = world.start_worker("inference", within=CONTAINER)
    eventually(lambda: any(map(_has_forked, _children(container.pid))), what="a worker that has started")
    for pid in others:  # of two workers on one backend one drives: this one
        os.kill(pid, signal.SIGSTOP)
    batch = world.submit(100)
    world.await_lines(2, batch)
    holders = "SELECT DISTINCT lease_id FROM batches_line WHERE lease_id IS NOT NULL"
    its_own = set(eventually(lambda: world.rows.all(holders), what="lines that it holds"))
    for pid in others:
        os.kill(pid, signal.SIGCONT)
    world.kills += 1
    container.kill()
    container.wait()
    within_s = leases.LIFETIME.total_seconds() / 2
    eventually(lambda: set(world.rows.all(holders)) - its_own, within_s=within_s, what="lines of the other worker")
    eventually(lambda: not its_own & set(world.rows.all(holders)), within_s=within_s, what="its lines handed back")


# The broker


def _broker_flushed(world: World) -> None:
    batch = world.submit(20)
    for count in (0, 2, 5, 9):
        world.await_lines(count, batch)
        world.flush_broker()
    world.submit(3)
    world.flush_broker()


def _broker_down(world: World) -> None:
    """The supervisor starts it again and again, and each time it is killed."""
    world.submit(20)
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        world.server.kill("valkey")
        time.sleep(0.1)
        if ends_at - time.monotonic() < 20 and len(world.batches) < 2:
            world.submit(3)


def _broker_frozen(world: World) -> None:
    world.submit(20)
    [pid] = world.pids_of("valkey")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(15)
    world.submit(3)
    time.sleep(15)
    os.kill(pid, signal.SIGCONT)


# The model server


def _backend_is(dial: Action, for_s: float = 8.0) -> Callable[[World], None]:
    """It does this to every request for a while, trials included; no line may pay for it."""

    def act(world: World) -> None:
        batch = world.submit(12)
        world.await_lines(2, batch)
        world.backend.dial = dial
        time.sleep(for_s)
        world.backend.dial = None

    return act


def _backend_refuses(world: World) -> None:
    batch = world.submit(12)
    world.await_lines(2, batch)
    world.kills += 1  # the answers in flight
    world.backend.kill()
    time.sleep(8.0)
    world.backend.revive()


def _backend_truncates(world: World) -> None:
    """Each prompt is longer than the context and is cut without a word."""
    world.backend.context = 300
    world.submit(4, id_length=512, failed=4)


NO_FINISH_REASON = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "half an"}, "finish_reason": None}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
RUNNER_DIED = error_body("model runner has unexpectedly stopped, this may be due to resource limitations")
NO_MEMORY = error_body("model requires more system memory (9.9 GiB) than is available (3.1 GiB)")
BUSY = error_body("server busy, please try again.  maximum pending requests exceeded")


# The database, the disk, the clock


def _postgres_crashes(world: World) -> None:
    batch = world.submit(30)
    assert world.postgres is not None
    for count in (2, 5):
        world.await_lines(count, batch)
        with world.outage():
            world.kills += 1
            world.postgres.crash(away_s=3.0)


def _database_locked(world: World) -> None:
    batch = world.submit(20)
    world.await_lines(2, batch)
    with world.rows.locked():
        time.sleep(10)


def _upload_without_room(world: World) -> None:
    """The kernel refuses the web process to write beyond 8 MiB of a file."""
    for pid in world.pids_of("gunicorn"):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (8 * 2**20, hard))
    answered = world.upload(b'{"padding": "' + b"x" * 10 * 2**20 + b'"}\n')
    assert (answered.status_code, answered.json()["error"]["type"]) == (507, "server_error"), answered.text
    left = {path.name for path in (world.server.data_dir / "files").rglob("*") if path.is_file()}
    assert left == {storage_id.OBJECT}, f"left behind: {left}"
    for pid in world.pids_of("gunicorn"):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    world.submit(3)


def _disk_full(world: World) -> None:
    """From the third line to the last, and while the result files are due."""
    batch = world.submit(20)
    world.await_lines(3, batch)
    with world.full_disk():
        answered = world.upload(b'{"a": 1}\n' * 100_000)
        assert answered.status_code in (503, 507), f"HTTP {answered.status_code}"
        time.sleep(12)


def _s3_goes_wrong(world: World) -> None:
    """While S3 takes its time, each process is killed in turn. Then S3 is busy, silent and away in mid-batch."""
    assert world.s3 is not None
    proxy = world.s3.proxy
    proxy.rule = lambda asked: Fault(delay_s=0.2)
    _each_process_in_turn(world)
    for hurt in (SLOW_DOWN, Fault(hang=True), Fault(drop=True)):
        proxy.rule = lambda asked: None
        batch = world.submit(20)
        world.await_lines(3, batch)
        proxy.rule = lambda asked, hurt=hurt: hurt  # type: ignore[misc]
        told = world.upload(b"{}\n").status_code
        time.sleep(3)
        proxy.rule = lambda asked: None
        assert told == 503, f"HTTP {told}"
    proxy.go_away()
    time.sleep(6)
    proxy.come_back()


def _clock_steps(world: World) -> None:
    batch = world.submit(40)
    for count, offset_s in ((2, 3600), (8, 0), (14, -3600), (20, 0)):
        world.await_lines(count, batch)
        world.step_clock(offset_s)


def _has_compiler() -> bool:
    return shutil.which("cc") is not None


def _is_root() -> bool:
    return os.geteuid() == 0


def _has_containers() -> bool:
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


INFERENCE_STEPS = (
    "after_claim:kill9@2,before_send:kill9_parent@3,after_answer:kill9@2,mid_store:kill9@3,after_store:kill9@4"
)
CONTROL_STEPS = (
    "mid_validation:kill9,before_finalize_write:kill9_parent,after_result_file:kill9,after_final_move:kill9,"
    "mid_tidy:kill9"
)
WEB_STEPS = "after_upload_received:kill9,after_upload_stored:kill9,after_create_committed:kill9"

PHASES = (
    "mid_validation:sleep=2,after_claim:sleep=2@2,before_send:sleep=2@3,after_answer:sleep=2@2,"
    "after_result_file:sleep=2"
)

ALL = [
    Scenario("inference worker, kill -9 at every step", _killed_at_failpoints, INFERENCE_STEPS, quick=SQLITE),
    Scenario("control worker, kill -9 at every step", _killed_at_failpoints, CONTROL_STEPS, quick=SQLITE),
    Scenario("web, kill -9 at every step", _web_killed_at_failpoints, WEB_STEPS, quick=SQLITE),
    Scenario("web, kill -9 in each phase", _in_each_phase(World.kill_web), PHASES),
    Scenario("broker, kill -9 in each phase", _in_each_phase(World.kill_broker), PHASES),
    Scenario("backend, kill -9 in each phase", _in_each_phase(World.kill_backend), PHASES),
    Scenario("everything, kill -9 in each phase", _in_each_phase(World.kill_all), PHASES),
    Scenario("each process in turn, kill -9", _each_process_in_turn, quick=SQLITE),
    Scenario(
        "100 random kills, 2,000 lines",
        _hundred_random_kills,
        is_long=True,
        # Or the window would grow, and the batch be over too soon.
        environment={"BACKEND_PARALLEL": "1"},
    ),
    Scenario("a line that takes its worker along", _a_line_that_takes_its_worker_along),
    Scenario("cancelled, then everything killed", _cancelled_and_killed),
    Scenario("window over while workers are dead", _window_over_while_dead),
    Scenario("SIGTERM in mid-line, new start", _stopped_in_mid_line, quick=SQLITE),
    Scenario("zombie writes a line", _zombie_writes, "after_answer:stop@3", quick=BOTH),
    Scenario("zombie finalizes", _zombie_finalizes, "after_result_file:stop,before_finalize_write:stop", quick=BOTH),
    Scenario(
        "inference worker stopped past its lease",
        _sleeps_past_its_lease("after_answer", "inference"),
        "after_answer:stop@3",
    ),
    Scenario(
        "control worker stopped past its lease",
        _sleeps_past_its_lease("after_result_file", "control"),
        "after_result_file:stop",
    ),
    Scenario("inference worker hangs for good", _hangs_for_good, "after_answer:stop@3"),
    Scenario("inference worker frozen in mid-store", _frozen_in_mid_store, "mid_store:stop@3", only_on="postgres"),
    Scenario("cable pulled in mid-store", _cable_pulled_in_mid_store, only_on="postgres"),
    Scenario("inference worker ended by remote control", _ended_by_remote_control),
    Scenario("a host without the files", _host_without_files),
    Scenario("yesterday's workers beside today's", _yesterdays_worker, needs=_has_yesterday),
    Scenario("two inference workers, one backend", _two_workers, quick=BOTH),
    Scenario("a drive of another container, kill -9", _drive_of_another_container_dies, needs=_has_containers),
    Scenario(
        "three drives, kill -9 at every step",
        _three_drives,
        INFERENCE_STEPS,
        environment={"MAX_CONCURRENT_BATCHES": "3", "BACKEND_PARALLEL": "4"},
    ),
    Scenario("broker FLUSHALL", _broker_flushed, quick=SQLITE),
    Scenario("broker down 30 s", _broker_down),
    Scenario("broker frozen 30 s", _broker_frozen),
    Scenario("backend refuses connections", _backend_refuses),
    Scenario("backend 503", _backend_is(Action(503, BUSY))),
    Scenario("backend 500, runner died", _backend_is(Action(500, RUNNER_DIED)), quick=SQLITE),
    Scenario("backend 500, no memory", _backend_is(Action(500, NO_MEMORY))),
    Scenario("backend hangs", _backend_is(Action(hang=True)), environment={"LINE_TIMEOUT_S": "2"}),
    Scenario("backend drips", _backend_is(Action(drip_s=1.0)), environment={"LINE_TIMEOUT_S": "2"}),
    Scenario("backend cuts in mid-body", _backend_is(Action(cut_after=20))),
    Scenario("backend answers garbage", _backend_is(Action(body=b"\x00garbage"))),
    Scenario("backend gives no finish_reason", _backend_is(Action(body=NO_FINISH_REASON))),
    Scenario("backend truncates without a word", _backend_truncates, environment={"FIT_CONTEXT": "False"}),
    Scenario("upload without room (RLIMIT_FSIZE)", _upload_without_room),
    Scenario("disk full for 12 s (tmpfs)", _disk_full, disk_mb=64, needs=_is_root),
    Scenario("files in S3, which goes wrong", _s3_goes_wrong, in_s3=True, needs=lambda: s3_program() is not None),
    Scenario("Postgres crashes twice", _postgres_crashes, only_on="postgres"),
    Scenario("database locked for 10 s", _database_locked),
    Scenario(
        "clocks of two hosts, 5 minutes ahead and behind",
        _clocks_of_hosts,
        own_clock=True,
        only_on="postgres",
        needs=_has_compiler,
    ),
    Scenario("clock steps by an hour, four times", _clock_steps, own_clock=True, needs=_has_compiler),
]
BY_NAME = {scenario.name: scenario for scenario in ALL}
