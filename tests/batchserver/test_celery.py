"""Messages are sent by our own Celery app, whoever sends them."""

import os
import subprocess
import sys
import threading

import pytest
from django.core import management
from django.test import override_settings

from batches import tasks
from batchserver import masking
from batchserver.celery import app
from tests.stack import ROOT

# Each secret has this word, in upper case, in it.
WORD = "T0PSECRET"
SECRETS = {
    "WEBHOOK_URL": f"https://me:{WORD}@example.org/hook/{WORD}?token={WORD}",
    "WEBHOOK_SECRET": f"whsec_{WORD}AAA" + "QUJD" * 12,
    "BACKEND_API_KEY": WORD,
    "SECRET_KEY": WORD * 8,
    "DATABASE_URL": f"postgres://me:{WORD}@db/jobs",
    "CELERY_BROKER_URL": f"redis://:{WORD}@broker:6379/0",
}
SHOW = """
import django
django.setup()
from batchserver.celery import app
from django.core import management
print(app.conf.table(with_defaults=True), app.bugreport(), app.conf.humanize(with_defaults=True))
for output in ("hash", "unified"):
    management.call_command("diffsettings", "--all", "--output", output)
"""


@pytest.mark.usefixtures("processes")
def test_no_page_or_command_shows_a_secret():
    """By what a worker answers to `celery inspect conf` and `report`, and by diffsettings."""
    environment = os.environ | SECRETS | {"DJANGO_SETTINGS_MODULE": "batchserver.settings"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "WEBHOOK_URL" in done.stdout  # by diffsettings, masked
    assert "broker" in done.stdout
    assert WORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_URL", f"https://example.org/{WORD}"),
        ("AWS_SECRET_ACCESS_KEY", WORD),
        ("AWS_ACCESS_KEY_ID", WORD),
        ("AWS_SESSION_TOKEN", WORD),
        ("SENTRY_DSN", f"https://{WORD}@sentry.example/1"),
        ("CELERY_BROKER_URL", f"amqp://me:{WORD}@broker//"),
        ("ANYTHING", f"http://me:{WORD}@host/path"),
        ("ANYTHING", f"http://me:a@{WORD}@host/path"),
        ("ANYTHING", [{"inner": f"redis://:{WORD}@host"}, (f"x://{WORD}@h",)]),
        ("DATABASES", {"default": {"PASSWORD": WORD, "NAME": "jobs"}}),
    ],
)
def test_a_secret_is_known_by_its_name_or_as_part_of_an_address(name, value):
    assert WORD not in str(masking.SecretsMasked().cleanse_setting(name, value))


def test_what_is_no_secret_is_shown(capsys):
    with override_settings(MODEL_NAME="gemma3:12b", BACKEND_URL="http://localhost:11434"):
        management.call_command("diffsettings")
    told = capsys.readouterr().out
    assert "'gemma3:12b'" in told
    assert "'http://localhost:11434'" in told


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


def test_a_lost_broker_ends_no_task_and_brings_no_advice_to_programmers():
    """Celery logs a warning of its own at each loss, unless it is told to cancel what is acknowledged late: nothing."""
    assert app.conf.worker_cancel_long_running_tasks_on_connection_loss
    assert not any(task.acks_late for name, task in app.tasks.items() if name.startswith("batches."))
    assert any(name.startswith("batches.") for name in app.tasks)
