"""What git keeps of a checkout."""

import subprocess

import pytest

from tests.stack import ROOT


def git(*arguments):
    asked = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip("this is no checkout of git")
    return asked.stdout.splitlines()


@pytest.mark.usefixtures("processes")
def test_nothing_is_kept_that_is_ignored_or_leads_out_of_the_checkout():
    """An environment that is a link to another one is no directory, and must be ignored all the same."""
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    links = [entry.split("\t")[1] for entry in git("ls-files", "--stage") if entry.startswith("120000")]
    assert all((ROOT / link).resolve().is_relative_to(ROOT) and (ROOT / link).is_file() for link in links)
    assert git("check-ignore", "--no-index", ".venv") == [".venv"]
