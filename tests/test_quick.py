"""`script/test quick` leaves out every test that starts a process, and no other can start one."""

import subprocess
import sys

import pytest

from tests.stack import ROOT


def test_a_test_that_did_not_ask_starts_no_process():
    with pytest.raises(pytest.fail.Exception, match="asks for the fixture `processes`"):
        subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.usefixtures("processes")
def test_a_test_that_asked_starts_one():
    subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.usefixtures("processes")
def test_it_leaves_out_what_comes_to_processes_and_what_is_slow():
    def collected(*options):
        modules = ["tests/test_serve.py", "tests/test_drives.py", "tests/test_jsonl.py"]
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", *options, *modules]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return {line.partition("[")[0] for line in told.splitlines() if "::" in line}

    left_out = collected() - collected("--quick")
    assert "tests/test_serve.py::test_a_child_that_dies_is_started_again" in left_out  # by way of `stack`
    assert "tests/test_serve.py::test_a_bad_setting_is_named_with_what_is_allowed" in left_out  # by its own mark
    assert "tests/test_drives.py::test_a_person_is_served_first" in left_out  # slow
    assert not {each for each in left_out if each.startswith("tests/test_jsonl.py")}
