"""What the pages name is there: links, paths, settings, addresses, commands with their options.

The commands of the README are run, with whole servers, by tests/repository/test_readme.py. Those of the other pages
need Docker, a card, or a system of their own; they are parsed.
"""

import ast
import functools
import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import available_timezones

import click
import pytest
import yaml
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandParser
from django.urls import Resolver404, resolve

from batches.admin.actions import ACTIONS
from client.commands import cli
from tests.env_file import NOT_IN_ENV_FILE, documented, interpolated, settings_keys
from tests.stack import ROOT

# Not the changelog: it tells of what was.
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if page.name != "CHANGELOG.md")
LEFT_OUT = {".git", ".venv", "node_modules", "data", "__pycache__", "build", "dist"}
# What a server makes in DATA_DIR, which is `data` unless it is set.
MADE_IN_DATA_DIR = {"data", "data/logs", "data/logs/run.log", "data/embedded"}
# What `script/batch run FILE` makes beside FILE.
MADE_BY_RUN = {"FILE.results.jsonl", "FILE.results.errors.jsonl"}
# What `script/backup` makes.
MADE_BY_BACKUP = {"backup.json"}
# What a page shows and its reader writes.
WRITTEN_BY_READERS = {"answer.json"}
# Settings of other programs, each read by the one that is named.
FOREIGN = {
    "OLLAMA_HOST": "Ollama's own; ours never sets it but for `pull` in docker-compose.yml",
    "OLLAMA_API_KEY": "read by Ollama's own client for Python",
    "OLLAMA_NUM_PARALLEL": "Ollama's own; docker-compose.yml gives it BACKEND_PARALLEL",
    "VLLM_SERVER_DEV_MODE": "vLLM's own",
    "OLLAMA_MODELS": "Ollama's own",
    "OLLAMA_NOPRUNE": "Ollama's own; docker-compose.yml sets it where two servers have one directory of models",
    "CUDA_VISIBLE_DEVICES": "read by NVIDIA's libraries",
    "AWS_CA_BUNDLE": "boto3's own, which reads it in the environment",
    "PYTHON_IMAGE": "an argument of the build, in Dockerfile",
    "LLAMA_ARG_FIT_TARGET": "llama.cpp's own, which Ollama starts",
}
# Programs that the pages' commands may start, and why their commands are parsed and not run.
PROGRAMS = {
    "script": "the README's are run by tests/repository/test_readme.py; others start a server or all tests",
    "curl": "the README's are run by tests/repository/test_readme.py; others need the server of docker compose",
    ".venv/bin/python": "manage.py: parsed by the command's own parser",
    ".venv/bin/pre-commit": "changes the hooks of the checkout",
    "ollama": "fetches gigabytes, and needs a card",
    "/opt/ollama-batch-server/script/server": "an installation by its path: docs/second-machine.md",
    "rsync": "copies from another machine",
    "mount": "needs another machine",
    "docker": "needs a daemon, and a card",
    "kubectl": "needs a cluster; tests/batchserver/test_kubernetes.py reads what it is given",
    "vllm": "needs a card; one on the CPU was put to sleep and woken by hand",
}


def paths_of_ours() -> set[str]:
    """Every file and folder of the project, relative to its root."""
    found = set()
    folders = [ROOT]
    while folders:
        for each in folders.pop().iterdir():
            if each.name not in LEFT_OUT and not each.name.endswith("_cache"):
                found.add(each.relative_to(ROOT).as_posix())
                if each.is_dir():
                    folders.append(each)
    return found


OURS = paths_of_ours()
TOP = {path for path in OURS if "/" not in path}
# Also by the end of its path, and without .py: `backends/calls` where the page is about batches/.
ENDINGS = {
    "/".join(parts[start:])
    for path in OURS
    for parts in (path.split("/"), path.removesuffix(".py").split("/"))
    for start in range(len(parts))
}


def fences(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language ("" for none) and text."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between backticks, outside fenced blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def words(page: Path) -> Iterator[str]:
    """The words of the spans that are no sentences of code, without what punctuation holds them."""
    for span in spans(page):
        yield from (word.strip(",;:()\"'") for word in span.split())


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def every(what) -> list[tuple[Path, str]]:
    """Pairs of a page and each of the things that `what` finds on it, for parametrize."""
    return [(page, each) for page in PAGES for each in dict.fromkeys(what(page))]


def name(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


# Links


def links(page: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"https?://|mailto:", link)]


@pytest.mark.parametrize(("page", "link"), every(links), ids=name)
def test_a_link_leads_somewhere(page, link):
    target, _, anchor = link.partition("#")
    there = (page.parent / target).resolve() if target else page
    assert there.exists(), f"{page.name} links to {link}"
    if anchor:
        assert anchor in anchors(there), f"{there.name} has no heading {anchor}"


# Paths


TIME_ZONES = available_timezones()  # each call reads 600 files


def is_a_path(word: str) -> bool:
    """Whether a word means a file or folder of the project."""
    if not re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", word) or re.fullmatch(r"[\d./]+|\.\w+", word):
        return word in TOP
    if word in TIME_ZONES:
        return False
    return "/" in word or word in TOP or bool(re.search(r"\w\.(py|md|yml|toml|jsonl?)$", word))


def paths(page: Path) -> list[str]:
    """In backticks; and the folders of a picture of folders, each at the beginning of a line."""
    found = [word.rstrip(".") for word in words(page) if is_a_path(word.rstrip("."))]
    pictures = [text for language, text in fences(page) if not language]
    return found + [path for text in pictures for path in re.findall(r"^ *([\w.-]+/)(?:\s|$)", text, re.MULTILINE)]


def is_there(path: str) -> bool:
    path = path.rstrip("/")
    if path in MADE_BY_RUN | MADE_BY_BACKUP | WRITTEN_BY_READERS:
        return True
    if "*" in path:
        return any(ROOT.glob(path))
    return path in ENDINGS or path in MADE_IN_DATA_DIR or path.startswith(".venv/")


@pytest.mark.parametrize(("page", "path"), every(paths), ids=name)
def test_a_path_is_there(page, path):
    assert is_there(path), f"{page.name} names {path}"


# Functions and modules


def members(page: Path) -> list[str]:
    """Words such as `lifecycle.cancel`: what a module, or a folder of them, has."""
    found = [word.removesuffix("()").rstrip(".") for word in words(page)]
    return [word for word in found if re.fullmatch(r"[a-z_]+\.[A-Za-z_]+", word) and not is_a_path(word)]


def is_a_member(word: str) -> bool:
    owner, _, member = word.partition(".")
    if f"{owner}/{member}" in ENDINGS:
        return True
    homes = [path for path in OURS if path.endswith((f"{owner}.py", f"{owner}/__init__.py"))]
    homes = [path for path in homes if path.removesuffix("/__init__.py").removesuffix(".py").split("/")[-1] == owner]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(
        isinstance(node, kinds) and node.name == member
        for path in homes
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
    )


# The other pages are for users: there such words are names of events and of members of a request.
@pytest.mark.parametrize("word", dict.fromkeys(members(ROOT / "ARCHITECTURE.md")))
def test_a_member_of_a_module_is_there(word):
    assert is_a_member(word), f"ARCHITECTURE.md names {word}"


# Settings

SETTING = r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+"


def named_settings(page: Path) -> list[str]:
    """Words in capitals in backticks, and what blocks of commands and units give a value."""
    found = [match[1] for word in words(page) if (match := re.fullmatch(rf"({SETTING})(=.*)?", word))]
    typed = [text for language, text in fences(page) if language in ("console", "sh", "ini")]
    return found + [setting for text in typed for setting in re.findall(rf"(?<![\w$])({SETTING})=", text)]


@functools.cache
def constants() -> set[str]:
    """The names of constants in the code: pages for those who read it name them too."""
    found = set()
    for path in OURS:
        if path.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.isupper():
                    found.add(node.id)
    return found


KNOWN = settings_keys() | set(documented()) | set(interpolated()) | NOT_IN_ENV_FILE | set(FOREIGN)


@pytest.mark.parametrize(("page", "setting"), every(named_settings), ids=name)
def test_a_setting_is_read_by_somebody(page, setting):
    assert setting in KNOWN or setting in constants(), f"{page.name} names {setting}"


def test_what_is_foreign_is_not_ours():
    assert not set(FOREIGN) & (settings_keys() | set(documented()))
    assert not [setting for setting in FOREIGN if not any(setting in page.read_text() for page in PAGES)]


# Addresses


NOT_SERVED = {
    "/v1": "what all of the API begins with",
    "/v1/webhook_endpoints": "README.md says that it is missing",
}


def addresses(page: Path) -> list[str]:
    found = [word.rstrip(".") for word in words(page)]
    ours = [word for word in found if re.match(r"/(v1|admin|health|metrics)\b", word) and "…" not in word]
    return [address for address in ours if address not in NOT_SERVED]


@pytest.mark.parametrize(("page", "address"), every(addresses), ids=name)
def test_an_address_is_served(page, address):
    path = re.sub(r"\{\w+\}", "some-id", address)
    for each in dict.fromkeys([path, path.rstrip("/") + "/"]):
        try:
            resolve(each)
        except Resolver404:
            continue
        return
    pytest.fail(f"{page.name} names {address}")


# Commands


def typed_lines(page: Path) -> list[str]:
    """What the blocks of a page type at a prompt, continuation lines joined, comments taken off."""
    lines = []
    for language, text in fences(page):
        if language in ("console", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                command = re.sub(r"(^|\s)#.*$", "", line.strip())
                if language == "console":
                    command = command.removeprefix("$ ") if command.startswith("$ ") else ""
                lines.append(command)
    return [line for line in lines if line and not re.fullmatch(rf"{SETTING}=\S*|[A-Z]+=\S*", line)]


def commands(page: Path) -> list[str]:
    """Those, and what stands between backticks and begins like a command of ours."""
    ours = re.compile(rf"(?:(?:{SETTING}|[A-Z]+)=\S+ )*(?:script/\w+|docker compose|(?:\S*python )?manage\.py)(?: |$)")
    return typed_lines(page) + [span for span in spans(page) if ours.match(span) or " manage.py " in span]


def parts_of(command: str) -> list[list[str]]:
    """The words of each program in the line, without the settings before it."""
    without_files = re.sub(r"[<>] *\S+", "", command)
    parts = itertools.groupby(shlex.split(without_files), lambda word: word in ("|", "&&"))
    return [
        list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z0-9_]+=.*", word), words))
        for is_between, words in parts
        if not is_between
    ]


class Refused(Exception):
    """What the parser of a command says to arguments that it does not know."""


def parse(command: str, arguments: list[str]) -> None:
    """Give the arguments to the parser of that management command. Raises Refused."""
    if command == "help":
        return
    if command not in get_commands():
        raise Refused(f"there is no manage.py {command}")
    app = get_commands()[command]
    loaded: BaseCommand = app if isinstance(app, BaseCommand) else load_command_class(app, command)
    parser: CommandParser = loaded.create_parser("manage.py", command)
    known = set(parser._option_string_actions)
    for option in (word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)):
        if option not in known:
            raise Refused(f"manage.py {command} has no {option}")


def parse_for_client(arguments: list[str]) -> None:
    """Give the arguments to the command line's own parser, which runs nothing. Raises Refused."""
    if not arguments:
        return
    try:
        name, command, rest = cli.resolve_command(click.Context(cli), list(arguments))
        assert command is not None
        if rest:  # else the command is only named
            command.make_context(name, rest)
    except click.exceptions.Exit:
        pass  # --help
    except click.UsageError as error:
        raise Refused(error.format_message()) from None


def what_is_wrong(command: str) -> str | None:
    """Why this command cannot be typed as it stands there, if it cannot."""
    try:
        for given in parts_of(command):
            if given[0].startswith("script/"):
                check_script(given[0], given[1:])
            if given[:2] == ["docker", "compose"]:
                check_services(given[2:])
            if "manage.py" in given:
                management = given[given.index("manage.py") + 1 :]
                parse(management[0], management[1:])
    except Refused as error:
        return str(error)
    return None


def check_script(script: str, arguments: list[str]) -> None:
    """A script knows an option because its text has it, or what it hands its arguments to: a management command, or the
    command line of the client."""
    path = ROOT / script
    if not path.exists():
        raise Refused(f"there is no {script}")
    if script in ("script/batch", "script/run"):
        parse_for_client([*(["run"] if script == "script/run" else []), *arguments])
        return
    if handed_on := re.search(r'manage(?:\.py)?"? (\w+) "\$@"', path.read_text()):
        parse(handed_on[1], arguments)
    elif arguments and not re.search(rf"(?<![\w-]){re.escape(arguments[0])}(?![\w-])", path.read_text()):
        raise Refused(f"{script} knows no {arguments[0]}")


def check_services(arguments: list[str]) -> None:
    """The services that `docker compose` is given stand in docker-compose.yml."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    while arguments[0] == "--profile":
        if not any(arguments[1] in service.get("profiles", []) for service in services.values()):
            raise Refused(f"there is no profile {arguments[1]}")
        arguments = arguments[2:]
    named = [word for word in arguments[1:] if not word.startswith("-")]
    if arguments[0] in ("exec", "run"):
        named = named[:1]
    if arguments[0] in ("up", "logs", "exec", "run", "stop", "start", "restart", "pull"):
        for each in named:
            if each not in services:
                raise Refused(f"there is no service {each}")


@pytest.mark.parametrize(("page", "command"), every(commands), ids=name)
def test_a_command_can_be_typed(page, command):
    assert what_is_wrong(command) is None, f"{page.name}: {command}"


@pytest.mark.parametrize(("page", "command"), every(typed_lines), ids=name)
def test_a_program_is_known(page, command):
    """A program that is new on the pages needs a reason above, or a test that runs it."""
    for program, *_ in parts_of(command):
        assert program in PROGRAMS or program.split("/")[0] in PROGRAMS, f"{page.name}: {command}"


def typed_in_a_checkout(page: Path) -> list[str]:
    """Management commands with the name of the Python that runs them. docs/benchmarks.md is for who measures."""
    is_meant = page.name != "benchmarks.md"
    return [command for command in commands(page) if is_meant and re.match(r"\S*python\S* manage\.py ", command)]


@pytest.mark.parametrize(("page", "command"), every(typed_in_a_checkout), ids=name)
def test_a_management_command_names_the_python_that_has_django(page, command):
    assert command.startswith(".venv/bin/python "), f"{page.name}: {command}"


def buttons(page: Path) -> list[str]:
    """What a page calls the admin's actions."""
    return re.findall(r"\*([^*|\n]+)\* in the admin", prose(page))


@pytest.mark.parametrize(("page", "button"), every(buttons), ids=name)
def test_a_button_of_the_admin_is_there(page, button):
    assert any(action.label.startswith(button) for action in ACTIONS.values()), f"{page.name} names {button}"


def test_every_known_program_is_named():
    programs = {part[0] for page in PAGES for command in typed_lines(page) for part in parts_of(command)}
    named = programs | {program.split("/")[0] for program in programs}
    assert [each for each in PROGRAMS if each not in named] == []


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_shell_understands_every_block(page):
    for language, text in fences(page):
        if language in ("console", "sh"):
            typed = re.sub(r"^\$ ", "", text, flags=re.MULTILINE) if language == "console" else text
            told = subprocess.run(["bash", "-n"], input=typed, capture_output=True, text=True, check=False)
            assert (told.returncode, told.stderr) == (0, ""), typed


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_and_json_blocks_can_be_read(page):
    for language, text in fences(page):
        if language == "python":
            ast.parse(text)


# The checks themselves


@pytest.mark.parametrize(
    "command",
    [
        "manage.py no_such_command",
        "python manage.py serve --no-such-option",
        "script/nothing",
        "script/run examples/requests.jsonl --no-such-option",
        "script/batch watch --no-such-option",
        "script/batch look",
        "script/batch list last",
        "script/test slowly",
        "cat dump | docker compose exec -T database psql",
        "docker compose --profile gpus up -d",
        "docker compose --profile gpu up -d olama",
        "docker compose exec webb python manage.py changepassword admin",
        "docker compose exec web python manage.py change_password admin",
    ],
)
def test_a_mistake_in_a_command_is_seen(command):
    assert what_is_wrong(command)


@pytest.mark.slow
def test_every_kind_of_thing_is_found():
    readme = ROOT / "README.md"
    assert "docs/deploy.md" in links(readme)
    assert "script/server" in paths(readme)
    assert {"MODEL_NAME", "BACKEND_PARALLEL"} <= set(named_settings(readme))
    assert "/v1/batches/{id}/progress" in addresses(readme)
    assert "manage.py benchmark prefixes models" in commands(readme)
    assert "MODEL_NAME=qwen3:14b script/server" in commands(readme)
    assert "migrations" not in paths(ROOT / "ARCHITECTURE.md")
    assert {"batches/", "tests/"} <= set(paths(ROOT / "ARCHITECTURE.md"))
    assert members(ROOT / "ARCHITECTURE.md")
    assert not is_a_member("lifecycle.no_such_function")
    for path in ("batches/no_such_module.py", "docs/nothing.md", "no_such_folder/"):
        assert is_a_path(path)
        assert not is_there(path)
