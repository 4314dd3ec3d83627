"""deploy/kubernetes, held against docker-compose.yml and the code. No cluster is needed, and none of its programs."""

import re
from typing import Any

import pytest
import yaml

from batchserver import env, parts
from tests.env_file import settings_keys
from tests.stack import ROOT

BASE = ROOT / "deploy" / "kubernetes" / "base"
OWN = ("migrate", "web", "control", "inference")
IN_SECRET = {"DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY"}

Thing = dict[str, Any]


def read(name: str) -> list[Thing]:
    return [each for each in yaml.safe_load_all((BASE / name).read_text()) if each]


KUSTOMIZATION = read("kustomization.yaml")[0]
THINGS = [each for name in KUSTOMIZATION["resources"] for each in read(name)]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SETTINGS = dict(line.split("=", 1) for line in (BASE / "settings.env").read_text().splitlines())


def of_kind(*kinds: str) -> list[Thing]:
    return [each for each in THINGS if each["kind"] in kinds]


def pods() -> dict[str, Thing]:
    return {each["metadata"]["name"]: each["spec"]["template"] for each in of_kind("Job", "Deployment", "StatefulSet")}


def container(name: str, of: str = "") -> Thing:
    [found] = [each for each in pods()[of or name]["spec"]["containers"] if each["name"] == name]
    return found


def test_the_list_has_every_file() -> None:
    assert {path.name for path in BASE.glob("*.yaml")} == {"kustomization.yaml", *KUSTOMIZATION["resources"]}
    assert KUSTOMIZATION["configMapGenerator"] == [{"name": "settings", "envs": ["settings.env"]}]
    names = [(each["kind"], each["metadata"]["name"]) for each in THINGS]
    assert len(set(names)) == len(names)
    assert set(pods()) == set(OWN)


def test_the_commands_are_those_of_serve(settings: Any, tmp_path: Any) -> None:
    settings.DATA_DIR, settings.HOST, settings.PORT = tmp_path, SETTINGS["HOST"], int(SETTINGS["PORT"])
    settings.EMBEDDED_BROKER = settings.EMBEDDED_BACKEND = False

    children = {child.name: child for child in parts.children()}

    for name, child in (("web", "web"), ("control", "control worker"), ("inference", "inference worker")):
        assert container(name)["command"] == ["python", *children[child].command[1:]]
        # And a stop is given more time than it takes.
        assert pods()[name]["spec"]["terminationGracePeriodSeconds"] > children[child].grace_s
    assert container("migrate")["command"] == ["python", "manage.py", "setup"]
    assert container("web")["ports"] == [{"name": "http", "containerPort": int(SETTINGS["PORT"])}]


def test_settings_are_settings_and_hold_no_secret() -> None:
    assert set(SETTINGS) <= settings_keys()
    assert not set(SETTINGS) & IN_SECRET
    assert (SETTINGS["HOST"], SETTINGS["DATA_DIR"]) == ("0.0.0.0", "/data")
    for name in OWN:
        assert container(name)["envFrom"] == [
            {"configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "ollama-batch-server"}},
        ]
        assert {each["name"] for each in container(name).get("env", [])} <= {"POD_NAME", "OLLAMA_BASE_URL"}
    text = "".join(path.read_text() for path in BASE.iterdir())
    assert not of_kind("Secret")
    assert not re.search(r"(?i)(password|secret|_key|_token)\s*[:=]\s*\S", text)


def test_the_page_says_what_the_secret_holds() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()

    [command] = re.findall(r"kubectl create secret generic ollama-batch-server(?:.*\\\n)+.*", page)
    assert set(re.findall(r"--from-literal=([A-Z_]+)=", command)) == IN_SECRET
    assert settings_keys() >= IN_SECRET


def test_our_containers_may_do_as_little_as_those_of_compose() -> None:
    compose = COMPOSE["x-app"]
    assert (compose["read_only"], compose["cap_drop"]) == (True, ["ALL"])
    for name in OWN:
        pod, inside = pods()[name]["spec"], container(name)["securityContext"]
        assert inside["readOnlyRootFilesystem"] is True
        assert inside["allowPrivilegeEscalation"] is False
        assert inside["capabilities"] == {"drop": ["ALL"]}
        as_user = pod["securityContext"] | inside
        assert (as_user["runAsNonRoot"], as_user["runAsUser"], as_user["runAsGroup"]) == (True, 1000, 1000)
        assert as_user["fsGroup"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert container("ollama", "inference")["securityContext"] == {"allowPrivilegeEscalation": False}


def test_what_is_mounted_is_there_and_files_are_shared() -> None:
    for name, pod in pods().items():
        there = [each["name"] for each in pod["spec"]["volumes"]]
        templates = [each for each in of_kind("StatefulSet") if each["metadata"]["name"] == name]
        claimed = [claim["metadata"]["name"] for each in templates for claim in each["spec"]["volumeClaimTemplates"]]
        for each in pod["spec"]["containers"]:
            assert {mount["name"] for mount in each["volumeMounts"]} <= {*there, *claimed}
        mounts = {mount["mountPath"]: mount["name"] for mount in container(name)["volumeMounts"]}
        assert mounts == {"/data": "data", "/data/files": "files", "/tmp": "tmp"}
        # deploy/kubernetes/s3 replaces this one by its place.
        assert pod["spec"]["volumes"][1] == {"name": "files", "persistentVolumeClaim": {"claimName": "files"}}
    [claim] = of_kind("PersistentVolumeClaim")
    assert (claim["metadata"]["name"], claim["spec"]["accessModes"]) == ("files", ["ReadWriteMany"])


def test_every_container_has_resources_and_the_card_goes_to_ollama_alone() -> None:
    limit: str = COMPOSE["x-app"]["mem_limit"]
    for pod in pods().values():
        for each in pod["spec"]["containers"]:
            resources = each["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}
            if each["name"] == "ollama":
                assert resources["limits"] == {"nvidia.com/gpu": 1}
            else:
                assert resources["limits"] == {"memory": limit.replace("g", "Gi")}


def test_a_web_server_without_workers_is_ready_and_one_that_answers_lives() -> None:
    web = container("web")

    assert web["livenessProbe"]["httpGet"]["path"] == web["startupProbe"]["httpGet"]["path"] == "/livez"
    # Longer than the minute after which gunicorn starts its worker again by itself.
    assert web["livenessProbe"]["periodSeconds"] * web["livenessProbe"]["failureThreshold"] > 60
    ready = web["readinessProbe"]
    assert ready["httpGet"]["path"] == "/readyz?exclude=control%20worker&exclude=inference%20worker"
    assert ready["timeoutSeconds"] > 3  # of which the page takes 3 s at most


@pytest.mark.parametrize("thing", of_kind("Deployment", "StatefulSet"), ids=lambda each: each["metadata"]["name"])
def test_a_selector_finds_its_pods(thing: Thing) -> None:
    labels = thing["spec"]["template"]["metadata"]["labels"]
    assert thing["spec"]["selector"]["matchLabels"] == labels
    assert labels["app.kubernetes.io/component"] == thing["metadata"]["name"]


def test_services_budgets_and_policies_mean_pods_that_there_are() -> None:
    all_labels = [pod["metadata"]["labels"] for pod in pods().values()]
    selectors = [each["spec"]["selector"] for each in of_kind("Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind("PodDisruptionBudget")]
    policies = of_kind("NetworkPolicy")
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in policies]
    peers = [peer for each in policies for rule in each["spec"]["ingress"] for peer in rule["from"]]
    selectors += [peer["podSelector"]["matchLabels"] for peer in peers]

    assert selectors
    assert [each for each in selectors if each not in all_labels] == []
    assert {each["metadata"]["name"] for each in of_kind("PodDisruptionBudget")} == {"web", "inference"}


def test_each_worker_names_its_ollama_so_that_the_web_servers_reach_it() -> None:
    inside = {each["name"]: each for each in container("inference")["env"]}
    [workload] = of_kind("StatefulSet")
    [service] = [each for each in of_kind("Service") if each["metadata"]["name"] == workload["spec"]["serviceName"]]

    assert inside["OLLAMA_BASE_URL"]["value"] == f"http://$(POD_NAME).{service['metadata']['name']}:11434"
    assert list(inside) == ["POD_NAME", "OLLAMA_BASE_URL"]  # what is named in a value stands before it
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert not env.is_of_this_machine("http://inference-0.inference:11434")


def test_ollama_is_told_the_same_as_in_compose() -> None:
    told = {each["name"]: each.get("value") for each in container("ollama", "inference")["env"]}
    compose = COMPOSE["x-ollama"]["environment"]
    defaults = {name: re.fullmatch(r"\$\{\w+:-(.*)\}", value)[1] for name, value in compose.items()}  # type: ignore[index]

    assert told == defaults | {"MODEL_NAME": None}
    assert told["OLLAMA_NUM_PARALLEL"] == SETTINGS["BACKEND_PARALLEL"]
    assert "MODEL_NAME" in SETTINGS
