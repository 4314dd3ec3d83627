import os
import signal
import subprocess
import sys

import pytest

from common import failpoints
from tests.stack import ROOT, eventually

PROGRAM = """
import django; django.setup()
from common.failpoints import reach
for number in (1, 2, 3):
    reach("here")
    print(number, flush=True)
"""


def start(tmp_path, text):
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "batchserver.settings", "DATA_DIR": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment | {"FAILPOINTS": text},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tmp_path, text):
    """What the program printed, and how it ended."""
    process = start(tmp_path, text)
    printed, _ = process.communicate(timeout=30)
    return printed.split(), process.returncode


@pytest.mark.parametrize(("action", "status"), [("kill9", -signal.SIGKILL), ("raise", 1), ("sleep=0.1", 0)])
@pytest.mark.usefixtures("processes")
def test_it_acts_at_the_nth_time(tmp_path, action, status):
    printed, ended = run(tmp_path, f"elsewhere:kill9,here:{action}@2")
    assert ended == status
    assert printed == (["1"] if status else ["1", "2", "3"])


@pytest.mark.usefixtures("processes")
def test_the_next_process_passes_by(tmp_path):
    assert run(tmp_path, "here:kill9") == ([], -signal.SIGKILL)
    assert run(tmp_path, "here:kill9") == (["1", "2", "3"], 0)


@pytest.mark.usefixtures("processes")
def test_a_stopped_process_goes_on_when_it_is_told(tmp_path):
    process = start(tmp_path, "here:stop@2")
    marker = tmp_path / "failpoints" / "here"
    eventually(lambda: marker.exists() and marker.read_text(), what="the stop")
    assert int(marker.read_text()) == process.pid
    assert process.stdout.readline() == "1\n"
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED).si_status == signal.SIGSTOP
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0].split() == ["2", "3"]


def test_without_the_setting_it_is_an_empty_function():
    assert failpoints.reach is failpoints._pass
