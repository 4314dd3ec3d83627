"""Messages are sent by our own Celery app, whoever sends them."""

import threading

from batches import tasks
from batchserver.celery import app


def test_every_thread_sends_by_our_app():
    """A shared task takes the current app of its thread: without ours it would look for a broker of Celery's own."""
    seen = []
    web = threading.Thread(target=lambda: seen.append((tasks.drive.app, tasks.drive.name)))
    web.start()
    web.join()
    assert seen == [(app, "batches.tasks.drive")]


def test_a_drive_goes_to_the_inference_worker_and_all_else_to_control():
    queues = {name: app.amqp.router.route({}, name)["queue"].name for name in app.tasks if name.startswith("batches.")}
    assert queues.pop("batches.tasks.drive") == "inference"
    assert {"batches.tasks.validate", "batches.tasks.tick"} < set(queues)
    assert set(queues.values()) == {"control"}
