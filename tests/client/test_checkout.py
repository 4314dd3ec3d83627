"""What the command line knows of its checkout is what the server's settings say."""

import json
import os
import subprocess
import sys

import pytest

from batchserver import installation
from batchserver.version import read_version
from client.checkout import Checkout
from client.trouble import Trouble
from tests.stack import ROOT

PROGRAM = (
    "import json; from batchserver import settings as s;"
    "print(json.dumps([s.HOST, s.PORT, str(s.DATA_DIR), str(s.INSTANCE_ID)]))"
)


@pytest.mark.usefixtures("processes")
def test_it_reads_the_same_as_the_settings(tmp_path, monkeypatch):
    """From a file and from the environment, which wins; Django's settings are read by a process of their own."""
    env_file = tmp_path / "env"
    env_file.write_text(f"PORT=4999\nHOST='0.0.0.0'\nDATA_DIR={tmp_path}/elsewhere\n")
    monkeypatch.setenv("ENV_FILE", str(env_file))
    monkeypatch.setenv("DATA_DIR", f"{tmp_path}/data")
    told = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ, capture_output=True, check=True)
    host, port, data_dir, instance = json.loads(told.stdout)
    ours = Checkout.here()
    assert (host, port) == ("0.0.0.0", 4999)
    assert ours.address == "http://127.0.0.1:4999"
    assert str(ours.data_dirs[0]) == data_dir
    assert str(ours.data_dir_of(instance)) == data_dir
    assert (tmp_path / "data" / "instance_id").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("environment", [{}, {"DATA_DIR": "data"}, {"DATA_DIR": " ", "HOST": "", "PORT": " "}])
def test_the_defaults_are_those_of_the_settings(environment):
    ours = Checkout(ROOT, environment)
    assert ours.address == "http://127.0.0.1:4080"
    assert ours.data_dirs == [ROOT / "data", ROOT / "data" / "embedded"]
    assert ours.api_key == ""


@pytest.mark.parametrize(
    ("host", "address"),
    [("::1", "http://[::1]:4080"), ("::", "http://127.0.0.1:4080"), ("box.local", "http://box.local:4080")],
)
def test_an_address_is_one_that_can_be_called(host, address):
    assert Checkout(ROOT, {"HOST": host}).address == address


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "4080.5", "\uff18\uff10", "²"])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(Trouble, match=f"PORT='{port}'"):
        _ = Checkout(ROOT, {"PORT": port}).address


@pytest.mark.parametrize("instance", [None, "", "another"])
def test_a_server_without_our_name_is_not_ours(tmp_path, instance):
    (tmp_path / "instance_id").write_text("")
    assert Checkout(ROOT, {"DATA_DIR": str(tmp_path)}).data_dir_of(instance) is None


def test_the_stand_in_is_ours_too(tmp_path):
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "instance_id").write_text("name\n")
    assert Checkout(ROOT, {"DATA_DIR": str(tmp_path)}).data_dir_of("name") == tmp_path / "embedded"


@pytest.mark.parametrize(
    "environment",
    [{}, {"XDG_DATA_HOME": "/share", "XDG_CONFIG_HOME": "/etc/xdg"}, {"XDG_DATA_HOME": "share"}, {"DATA_DIR": "mine"}],
)
@pytest.mark.parametrize("root", [ROOT, None], ids=["checkout", "installed"])
def test_state_and_settings_are_where_the_server_has_them(environment, root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data_dir = installation.data_dir(environment.get("DATA_DIR", ""), environment, is_checkout=root is not None)
    assert Checkout(root, environment).data_dirs[0] == data_dir
    env_file = installation.env_file("", environment, is_checkout=root is not None)
    if tmp_path in env_file.parents:
        env_file.parent.mkdir(parents=True)
        env_file.write_text("PORT=4999\n")
        assert Checkout(root, environment)._env_file() == {"PORT": "4999"}


@pytest.mark.parametrize(
    "changelog",
    [
        "# Changelog\n\n## Unreleased\n\n* c\n\n## 0.2.0\n\n## 0.1.0\n",
        "## 0.2.0 (2026-12-01)\n",
        "## Unreleased\n",
        "",
        None,
    ],
)
def test_its_version_is_that_of_the_server(changelog, tmp_path):
    if changelog is not None:
        (tmp_path / "CHANGELOG.md").write_text(changelog)
    expected = "0+unknown" if changelog is None else read_version(tmp_path / "CHANGELOG.md")
    assert Checkout(tmp_path, {}).version == expected


def test_installed_it_names_the_commands_of_the_package(tmp_path):
    ours = Checkout(None, {"HOME": str(tmp_path)})
    assert (ours.command, ours.server_command) == ("ollama-batch", "ollama-batch-server")


def test_a_state_directory_that_is_relative_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"XDG_STATE_HOME": "state"}):
        assert Checkout(None, environment).state_dir == tmp_path / ".local" / "state" / "ollama-batch"
    assert Checkout(None, {"XDG_STATE_HOME": "/s"}).state_dir.as_posix() == "/s/ollama-batch"


@pytest.mark.usefixtures("processes")
def test_it_starts_quickly():
    """What is slow to import is imported where it is used. (The time itself depends on the machine.)"""
    program = "import sys, client.commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert "click" in modules
    assert not modules & {"requests", "rich", "jinja2", "django", "dotenv", "urllib3", "celery"}
