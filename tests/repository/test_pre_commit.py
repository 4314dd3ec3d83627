import yaml

from tests.stack import ROOT


def test_the_hooks_are_checks_of_script_test_too():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    checks = [each.removesuffix(" &") for each in (ROOT / "script" / "test").read_text().splitlines()]
    assert len(entries) >= 5
    assert [entry for entry in entries if entry not in checks] == []
    # Nothing is fetched: each hook is what script/test has put into .venv.
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
