"""Pictures of the tables in docs/benchmarks.md."""

import re
import sys
from importlib import metadata
from xml.etree import ElementTree

import pytest

from benchmarks import figures, report
from benchmarks.management.commands.benchmark import SCENARIOS
from tests.stack import ROOT

TEXT = """What it is.

```
model server  lines  bare swaps  batch swaps   bare s  batch s
------------  -----  ----------  -----------  -------  -------
       fixed     60          60            3  1,121.4      7.4
   llama.cpp     24           -            3        -      4.9

Target: a swap for each model. Met.
```
"""


def test_a_table_is_drawn_with_its_numbers_and_nothing_is_fetched(tmp_path):
    assert figures.draw("models", TEXT, tmp_path) == [
        "![Seconds for lines that name three models in turn](images/benchmark-models.svg)"
    ]
    drawn = (tmp_path / "images" / "benchmark-models.svg").read_text()
    shown = [text for each in ElementTree.fromstring(drawn.encode()).itertext() if (text := each.strip())]
    assert {"bare loop", "batch", "fixed", "llama.cpp", "1,121", "7.40", "4.90"} <= set(shown)
    assert "<script" not in drawn
    assert re.findall(r"https?://(?!www\.w3\.org/|pygal\.org)", drawn) == []
    # Safe to repeat.
    figures.draw("models", TEXT, tmp_path)
    assert (tmp_path / "images" / "benchmark-models.svg").read_text() == drawn


def test_what_is_no_table_of_a_figure_is_left_alone(tmp_path):
    assert figures.draw("models", TEXT.replace("batch s", "seconds"), tmp_path) == []
    assert figures.draw("intake", TEXT, tmp_path) == []
    assert not (tmp_path / "images").exists()


def test_each_figure_is_of_a_scenario():
    assert set(figures.FIGURES) <= set(SCENARIOS)


def test_the_pictures_of_the_page_show_its_tables(tmp_path):
    """After a change of a table: manage.py benchmark --draw"""
    page = (ROOT / report.PATH).read_text()
    sections = dict(re.findall(r"^## (\S+)\n+(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for name in figures.FIGURES:
        lines = figures.draw(name, sections[name], tmp_path)
        assert lines
        for line in lines:
            assert line in sections[name]
    for drawn in (tmp_path / "images").iterdir():
        assert drawn.read_text() == (ROOT / "docs" / "images" / drawn.name).read_text(), drawn.name


def test_drawing_again_changes_nothing(tmp_path, settings):
    settings.BASE_DIR = tmp_path
    (tmp_path / "docs").mkdir()
    (tmp_path / report.PATH).write_text(f"{report.INTRODUCTION}\n## models\n\n{TEXT}\n## card\n\nby hand\n")
    report.redraw(SCENARIOS)
    once = (tmp_path / report.PATH).read_text()
    assert once.count("![") == 1
    report.redraw(SCENARIOS)
    assert (tmp_path / report.PATH).read_text() == once


def test_imports_are_looked_for_as_before():
    """Those of pygal's plugins alone are not; what else it needs to find packages by their metadata stays."""
    figures.library()
    assert metadata.version("pygal")
    assert "PluginImportFixer" not in {type(finder).__name__ for finder in sys.meta_path}


def test_without_its_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygal", None)
    with pytest.raises(figures.NoLibrary, match=r"pip install -r requirements-dev\.txt"):
        figures.library()
