"""The lock files: all that is installed, each file of it by its hash, and as the pins say."""

import re
from importlib import metadata

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.test_wheel import pins
from tests.stack import ROOT

PINNED = {
    "requirements.lock": ("requirements-client.txt", "requirements-server.txt"),
    "requirements-dev.lock": ("requirements-client.txt", "requirements-server.txt", "requirements-dev.txt"),
    "requirements-embedded.lock": ("requirements-embedded.txt",),
    "requirements-release.lock": ("requirements-release.txt",),
}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(name):
    """The requirements of a lock file, each with its hashes."""
    text = "".join(each for each in (ROOT / name).read_text().splitlines(keepends=True) if not each.startswith("#"))
    entries = text.replace("\\\n", "").splitlines()
    return [(Requirement(entry.split("--hash")[0]), HASH.findall(entry)) for entry in entries]


@pytest.mark.parametrize("name", PINNED)
def test_each_file_that_is_installed_is_known_by_its_hash_and_no_index_is_named(name):
    for requirement, hashes in locked(name):
        assert hashes, requirement
        [specifier] = requirement.specifier
        assert (specifier.operator, requirement.url) == ("==", None)
    assert not re.search(r"://|--(extra-)?index|find-links", (ROOT / name).read_text())


@pytest.mark.parametrize(("name", "sources"), PINNED.items())
def test_it_has_the_versions_that_are_pinned(name, sources):
    versions = {canonicalize_name(each.name): str(each.specifier) for each, _ in locked(name)}
    for source in sources:
        for pin in pins(source):
            assert versions[canonicalize_name(pin.name)] == str(pin.specifier), f"{pin}: run script/release lock"


def test_what_is_tested_is_what_is_installed():
    versions = {canonicalize_name(each.name): str(each.specifier) for each, _ in locked("requirements-dev.lock")}
    for each, _ in locked("requirements.lock"):
        assert versions[canonicalize_name(each.name)] == str(each.specifier)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_it_has_what_each_of_its_packages_needs(name):
    """pip installs it without looking for dependencies."""
    names = {canonicalize_name(each.name) for each, _ in locked(name)}
    for each, _ in locked(name):
        if each.marker and not each.marker.evaluate(default_environment()):
            continue
        for text in metadata.distribution(each.name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in names, f"{each} needs {needed}"
