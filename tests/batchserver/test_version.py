import re
import shutil
import subprocess
import sys

import pytest
from django.conf import settings
from packaging.version import Version

from batchserver.version import read_version
from tests.stack import ROOT


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# Changelog\n\n## 0.2.0\n\n* b\n\n## 0.1.0\n\n* a\n", "0.2.0"),
        ("# Changelog\n\n## 0.2.0 (2026-12-01)\n", "0.2.0"),
        ("# Changelog\n\n## Unreleased\n\n* c\n\n## 0.2.0\n\n* b\n\n## 0.1.0\n", "0.2.0+unreleased"),
        ("# Changelog\n\n## Unreleased\n\n* a\n", "0+unknown"),
        ("", "0+unknown"),
    ],
)
def test_the_newest_heading_is_the_version(tmp_path, text, version):
    (tmp_path / "CHANGELOG.md").write_text(text)
    assert read_version(tmp_path / "CHANGELOG.md") == version
    assert str(Version(version)) == version


def test_the_changelog_has_a_version():
    assert Version(read_version()) >= Version("0.1.0")


@pytest.mark.usefixtures("processes")
def test_a_copy_of_the_code_without_its_changelog_works(tmp_path):
    for name in ("batchserver", "batches", "common", "files_api"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", tmp_path)
    program = "from batchserver import settings; print(settings.SPECTACULAR_SETTINGS['VERSION'])"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (told.stdout, told.stderr) == ("0+unknown\n", "")


def test_it_stands_nowhere_else():
    release = read_version().removesuffix("+unreleased")
    assert settings.SPECTACULAR_SETTINGS["VERSION"] == read_version()
    places = [*ROOT.glob("*.*"), ROOT / "Dockerfile", *(ROOT / "script").iterdir(), *(ROOT / "docs").iterdir()]
    for room in ("batchserver", "batches", "files_api"):
        places += (ROOT / room).rglob("*.py")
    written = re.compile(rf"""(?i)version\w*["']?\s*[=:]\s*["']?{re.escape(release)}\b""")
    assert written.search(f'"VERSION": "{release}",')
    assert written.search(f'version = "{release}"')
    found = [
        place.name
        for place in places
        if place.is_file() and place.name != "CHANGELOG.md" and written.search(place.read_text(errors="replace"))
    ]
    assert found == []
