"""The form of the log: for people or as JSON, with the time zone, in every process."""

import builtins
import json
import logging
import re
import runpy
import sys

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from django.conf import settings as configured
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from gunicorn.config import Config

from batchserver import env, supervisor
from batchserver.gunicorn_log import Log

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}"


def formatter(name):
    options = dict(configured.LOGGING["formatters"][name])
    return import_string(options.pop("()"))(**options)


def record(message, *arguments, exc_info=None, **extra):
    made = logging.LogRecord("batches.lifecycle", logging.INFO, "x.py", 1, message, arguments, exc_info)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize("make", [lambda: formatter("line"), lambda: supervisor.formatter("line")])
def test_a_line_has_the_time_zone(make):
    assert re.fullmatch(
        STAMP + r" INFO batches\.lifecycle: batch_1: completed", make().format(record("batch_1: completed"))
    )


def test_a_child_that_was_killed_is_told_in_one_line(caplog):
    """As Celery tells it; what its main process did meanwhile says nothing. Any other error keeps its traceback."""
    for error in (WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 3."), ValueError("a bug")):
        try:
            raise error
        except Exception:
            told = ExceptionInfo().exc_info
            logging.getLogger("celery.worker.request").error("Task handler raised error: %r", error, exc_info=told)
    lost, bug = (formatter("line").format(each) for each in caplog.records)
    assert len(lost.splitlines()) == 1
    assert "signal 9" in lost
    assert "Traceback" in bug


def test_a_line_has_the_id_of_its_request():
    told = formatter("line").format(record("busy", request_id="req_1"))
    assert told.endswith("busy [req_1]")


@pytest.mark.parametrize("make", [lambda: formatter("json"), lambda: supervisor.formatter("json")])
@pytest.mark.parametrize("message", ["plain", 'a "quote"', "two\nlines", "ünïcode ×", "\x1b[0m\x00", "{}%"])
def test_json_is_one_object_on_one_line(make, message):
    text = make().format(record("%s", message))
    assert len(text.splitlines()) == 1
    told = json.loads(text)
    assert re.fullmatch(STAMP.replace(" ", "T"), told.pop("time"))
    assert told == {"level": "INFO", "logger": "batches.lifecycle", "message": message}


def test_json_has_errors_and_the_id_of_the_request():
    try:
        raise ValueError("no")
    except ValueError:
        text = formatter("json").format(record("failed", exc_info=sys.exc_info(), request_id="req_1"))
    told = json.loads(text)
    assert told["request_id"] == "req_1"
    assert "ValueError: no" in told["exc_info"]


@pytest.mark.parametrize("make", [lambda: formatter("json"), lambda: supervisor.formatter("json")])
@pytest.mark.parametrize("name", ["request", "data", "server_time", "taskName", "context", "args_of_task", "stack"])
def test_json_has_nothing_that_a_library_adds(make, name):
    """Django adds the request, whose text has the query; Celery adds the arguments of a task."""
    text = make().format(record("failed", **{name: "<WSGIRequest: GET '/v1/files?key=hunter2'>", "status_code": 500}))
    assert json.loads(text).keys() == {"time", "level", "logger", "message"}
    assert "hunter2" not in text


def test_what_watches_over_the_processes_needs_the_standard_library_alone(monkeypatch):
    """It runs apart from all packages (`python -I`), and must not miss one in any format of its log."""
    importing = builtins.__import__

    def refuse_packages(name, *arguments, **named):
        assert name.partition(".")[0] in sys.stdlib_module_names
        return importing(name, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", refuse_packages)
        alone = runpy.run_path(supervisor.__file__)
        told = [alone["formatter"](log_format).format(record("busy")) for log_format in ("line", "json")]
    assert all("busy" in each for each in told)


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("line", False), ("", False), (" json ", True)])
def test_gunicorn_writes_in_the_same_form(monkeypatch, log_format, is_json):
    monkeypatch.setenv("LOG_FORMAT", log_format)
    before = list(logging.getLogger("gunicorn.error").handlers)
    log = Log(Config())
    try:
        text = log.error_log.handlers[0].format(record("Worker exiting"))
    finally:
        for each in ("gunicorn.error", "gunicorn.access"):
            logging.getLogger(each).handlers[:] = before
            logging.getLogger(each).propagate = True
    assert text.startswith("{") is is_json
    assert is_json or re.match(STAMP, text)


def test_a_choice_is_one_of_the_words():
    assert env.choice({}, "LOG_FORMAT", "line", "json") == "line"
    assert env.choice({"LOG_FORMAT": " json "}, "LOG_FORMAT", "line", "json") == "json"
    for value in ("JSON", "xml", "line,json"):
        with pytest.raises(ImproperlyConfigured, match=f"LOG_FORMAT='{value}': expected line or json."):
            env.choice({"LOG_FORMAT": value}, "LOG_FORMAT", "line", "json")
