"""kill -9 in mid-batch: every line is answered exactly once, and none that was finished is sent again."""

import random
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import line
from tests.environment import start_postgres
from tests.stack import eventually, kill
from tests.test_whole_server import check, client_of, finish, submit

LINES = [line(f"id-{number}") for number in range(30)]
IDS = [each["custom_id"] for each in LINES]


@pytest.fixture
def fake(fake):
    fake.delay_s = 0.25
    return fake


def sent_again(fake):
    """How many requests were sent beyond one for each line."""
    return len(fake.arrived()) - len(set(fake.arrived()))


def finished_lines_sent_again(client, fake, batch_id, done_before):
    """Lines that the API had counted as done and that arrived once more afterwards."""
    return [key for key in set(fake.arrived()) if fake.arrived().count(key) > 1 and key in done_before]


@pytest.mark.parametrize("victim", ["-Q inference", "-Q control", "gunicorn", "valkey", "manage.py serve"])
def test_each_process(stack, fake, victim):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    batch = submit(client, LINES)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5, what="five lines")

    done_before = set(fake.arrived(answered=True)[:-1])  # the last one may not be stored yet
    server.kill(victim)
    if victim == "manage.py serve":
        server.process.wait()
        server.start()

    done = finish(client, batch.id)
    assert done.status == "completed"
    check(client, done, IDS)
    # At most the line in flight is asked again, and nothing that had been stored.
    assert sent_again(fake) <= 1
    assert not finished_lines_sent_again(client, fake, batch.id, done_before)


def test_only_the_pools_child(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    batch = submit(client, LINES)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3, what="three lines")
    parent, *children = server.find("-Q inference")
    assert children
    for pid in children:
        kill(pid)
    done = finish(client, batch.id)
    check(client, done, IDS)
    assert sent_again(fake) <= 1
    assert parent in server.find("-Q inference")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """The environment that names the database."""
    if request.param == "sqlite":
        yield {}
        return
    pytest.importorskip("pgserver", reason="needs the Postgres wheel")
    # In a short directory: the path of its socket is limited.
    with tempfile.TemporaryDirectory(prefix="pg") as directory:
        yield {"DATABASE_URL": start_postgres(Path(directory))}


def test_everything_again_and_again(stack, fake, request, database):
    seed = random.randrange(10**6)
    request.node.user_properties.append(("seed", seed))
    chance = random.Random(seed)
    fake.delay_s = 0.1
    server = stack(OLLAMA_BASE_URL=fake.url, **database)
    client = client_of(server)
    lines = [line(f"id-{number}") for number in range(150)]
    batch = submit(client, lines)
    kills = 0
    victims = ["-Q inference", "-Q inference", "-Q control", "valkey", "gunicorn"]
    for _ in range(8):
        time.sleep(chance.uniform(0.5, 2.0))
        kills += bool(server.kill(chance.choice(victims)))
    done = finish(client, batch.id)
    check(client, done, [each["custom_id"] for each in lines])
    assert done.request_counts.failed == 0, seed
    assert sent_again(fake) <= kills, seed


def test_stopping_in_order_in_mid_batch_sends_nothing_twice(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    batch = submit(client, LINES)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3, what="three lines")
    assert server.stop() == 0
    server.start()
    done = finish(client, batch.id)
    check(client, done, IDS)
    assert sent_again(fake) == 0
