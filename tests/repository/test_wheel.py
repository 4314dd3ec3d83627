"""The wheel: built, installed into an empty environment, and started from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from batchserver.version import read_version
from tests.conftest import jsonl, line
from tests.stack import ROOT, Stack

pytestmark = pytest.mark.usefixtures("processes")
PACKAGES = ("batches", "batchserver", "client", "common", "files_api")
BUILT_FROM = (*PACKAGES, "CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")


def run(*command, cwd, status=0, **environment):
    """What it printed. It sees nothing of this process's environment, and nothing of the checkout."""
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, processes):
    """Built from a copy, so that what setuptools leaves behind is left there. Asks no package index."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*BUILT_FROM, *(path.name for path in ROOT.glob("requirements*.*"))):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    flags = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", copy / "dist", copy, cwd=copy, HOME=str(copy))
    (built,) = (copy / "dist").iterdir()
    return built


def pins(name):
    """The requirements that the lines of a file have."""
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(each) for each in lines if each and not each.startswith(("#", "-r"))]


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """An environment that holds the wheel and what its base installation needs: nothing but the pins of the client,
    taken from the environment of the tests."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", symlinks=True)
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    for pin in pins("requirements-client.txt"):
        for file in {each.parts[0] for each in metadata.distribution(pin.name).files if each.parts[0] != ".."}:
            if not (site / file).exists():
                (site / file).symlink_to(metadata.distribution(pin.name).locate_file(file))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place / "venv" / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place, HOME=str(place))
    assert "No broken requirements found." in run(*pip, "check", cwd=place, HOME=str(place))
    return place


def test_it_has_every_file_of_the_packages_and_no_other(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files


def test_it_says_what_the_files_of_the_checkout_say(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = (each for each in content.namelist() if each.endswith(".dist-info/METADATA"))
        told = metadata.PathDistribution(zipfile.Path(wheel, f"{Path(name).parent}/"))
    assert told.version == read_version()
    required = [Requirement(each) for each in told.requires]
    base = [each for each in required if "extra" not in str(each.marker)]
    assert sorted(map(str, base)) == sorted(map(str, pins("requirements-client.txt")))
    served = {canonicalize_name(each.name) for each in required if each not in base}
    assert served == {canonicalize_name(each.name) for each in pins("requirements-server.txt")}


def test_the_client_alone_starts_where_there_is_no_django(place, tmp_path):
    bin = place / "venv" / "bin"
    run(bin / "python", "-c", "import django", cwd=tmp_path, status=1)
    assert "Run files of requests as batches" in run(bin / "ollama-batch", "--help", cwd=tmp_path, HOME=str(tmp_path))
    assert run(bin / "ollama-batch", "--version", cwd=tmp_path) == f"ollama-batch {read_version()}\n"
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a"), line("a")]))
    said = run(bin / "ollama-batch", "check", "in.jsonl", cwd=tmp_path, status=1, HOME=str(tmp_path), PORT="9")
    assert "line 2: The custom_id 'a' is that of line 1 too." in said
    said = run(bin / "ollama-batch", "list", cwd=tmp_path, status=1, HOME=str(tmp_path), PORT="9")
    assert "Start it: ollama-batch-server." in said
    said = run(bin / "ollama-batch-server", cwd=tmp_path, status=1)
    assert "In the checkout: pip install '.[server]'" in said
    # A trial of everything that it imports late: templates, schemas, encodings, tables.
    late = "import charset_normalizer, dotenv, jinja2, jsonschema, requests, rich.live, rich.progress"
    run(bin / "python", "-c", late, cwd=tmp_path)


def test_the_server_starts_and_answers_the_client_beside_it(place, tmp_path, fake):
    """With all packages of the server, its state in the user's own directory."""
    bin = place / "venv" / "bin"
    (site,) = (place / "venv" / "lib").glob("python*/site-packages")
    # Behind the environment's own, so what both have is that of the wheel.
    others = site / "of_the_tests.pth"
    others.write_text(sysconfig.get_path("purelib"))
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OLLAMA_BASE_URL": fake.url}
    server = Stack(tmp_path / ".local" / "share" / "ollama-batch-server", home | {"DATA_DIR": ""})
    server.data_dir.mkdir(parents=True)
    port = {"PORT": str(server.port)}
    try:
        server.root = tmp_path
        server.start(command=[str(bin / "ollama-batch-server"), "--port", str(server.port)])
        assert f"Data     {server.data_dir}" in server.log.read_text()
        (tmp_path / "in.jsonl").write_bytes(jsonl([line("a"), line("b")]))
        said = run(bin / "ollama-batch", "run", "in.jsonl", cwd=tmp_path, **home, **port)
        assert f"version {read_version()}; data in {server.data_dir}" in said
        assert len((tmp_path / "in.results.jsonl").read_text().splitlines()) == 2
        # A template and a static file of the admin.
        for page in ("/admin/login/", "/static/admin/css/base.css"):
            assert requests.get(server.base + page, timeout=10).status_code == 200
        said = run(bin / "ollama-batch-server", "create_api_key", "laptop", cwd=tmp_path, **home)
        assert said.startswith("sk-")
    finally:
        status = server.stop()
        others.unlink()
    assert status == 0
