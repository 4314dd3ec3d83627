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


def collected(*arguments):
    """The tests that these arguments run, in their order, without their parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line.partition("[")[0] for line in told.splitlines() if "::" in line]


STARTS_SERVERS = "tests/batchserver/test_serve.py"
IS_SLOW = "tests/batches/dispatch/test_sharing.py"
IS_QUICK = "tests/batches/lines/test_jsonl.py"


@pytest.mark.usefixtures("processes")
def test_it_leaves_out_what_comes_to_processes_and_what_is_slow():
    modules = [STARTS_SERVERS, IS_SLOW, IS_QUICK]
    left_out = {*collected(*modules)} - {*collected("--quick", *modules)}
    assert f"{STARTS_SERVERS}::test_a_child_that_dies_is_started_again" in left_out  # by way of `stack`
    assert f"{STARTS_SERVERS}::test_a_bad_setting_is_named_with_what_is_allowed" in left_out  # by its own mark
    assert f"{IS_SLOW}::test_a_person_is_served_first" in left_out
    assert not {each for each in left_out if each.startswith(IS_QUICK)}


@pytest.mark.usefixtures("processes")
def test_the_files_that_start_processes_come_first():
    files = [test.partition("::")[0] for test in collected(IS_QUICK, STARTS_SERVERS)]
    assert list(dict.fromkeys(files)) == [STARTS_SERVERS, IS_QUICK]
    # Also of those that they leave to be shuffled: each file stays in one piece.
    assert files == sorted(files, key=lambda file: file != STARTS_SERVERS)
