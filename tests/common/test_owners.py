"""Whose is what: every address with every kind of caller; and another owner's row answers as one that never was."""

import hashlib
import json
import re
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import get_resolver
from django.utils import timezone

from batches.lines.jsonl import ENDPOINTS
from batches.models import Pulse
from common.models import ApiKey, Owner, Scope
from files_api.models import File
from tests.conftest import CHAT, line
from tests.fake_backend import Action, error_body

CALLERS = ("owner", "other owner", "administrator", "no key", "expired key", "key without the scope")
# What these get.
ROW = (200, 404, 404, 401, 401, 403)  # something of the owner's
OWN = (200, 200, 200, 401, 401, 403)  # each has one of its own, or all have the same
SERVER = (403, 403, 200, 401, 401, 403)  # what concerns everybody
OPEN = (200, 200, 200, 200, 200, 200)

BATCHES = {
    "POST /v1/files": OWN,
    "GET /v1/files": OWN,
    "GET /v1/files/{id}": ROW,
    "DELETE /v1/files/{id}": ROW,
    "GET /v1/files/{id}/content": ROW,
    "POST /v1/uploads": OWN,
    "POST /v1/uploads/{id}/parts": ROW,
    "POST /v1/uploads/{id}/complete": ROW,
    "POST /v1/uploads/{id}/cancel": ROW,
    "POST /v1/batches": OWN,
    "GET /v1/batches": OWN,
    "GET /v1/batches/{id}": ROW,
    "DELETE /v1/batches/{id}": ROW,
    "POST /v1/batches/{id}/cancel": ROW,
    "POST /v1/batches/{id}/pause": ROW,
    "POST /v1/batches/{id}/resume": ROW,
    "POST /v1/batches/{id}/extend": ROW,
    "POST /v1/batches/{id}/priority": ROW,
    "POST /v1/batches/{id}/retry": ROW,
    "GET /v1/batches/{id}/progress": ROW,
    "GET /v1/batches/{id}/reasons": ROW,
    "GET /v1/batches/{id}/output": ROW,
    "GET /v1/batches/{id}/errors": ROW,
}
CHATS = {
    **{f"POST {endpoint}": OWN for endpoint in ENDPOINTS},
    "POST /v1/messages": OWN,
    **{f"POST /api/{name}": OWN for name in ("chat", "generate", "embed", "embeddings", "show")},
}
WITH_ANY = {
    "GET /v1/models": OWN,
    "GET /v1/models/{id}": OWN,
    **{f"GET /api/{name}": OWN for name in ("tags", "ps", "version")},
}
ADMINISTRATORS = {
    "POST /v1/batches/pause": SERVER,
    "POST /v1/batches/resume": SERVER,
    **{f"POST /api/{name}": SERVER for name in ("pull", "create", "push", "copy", "me")},
    "DELETE /api/delete": SERVER,
    "HEAD /api/blobs/{id}": (403, 403, 404, 401, 401, 403),  # the Ollama has no such file yet
    "POST /api/blobs/{id}": (403, 403, 201, 401, 401, 403),
    "GET /metrics": SERVER,
}
EVERYBODYS = {
    "GET /v1/openapi.json": OPEN,
    "GET /health": OPEN,
    "GET /livez": OPEN,
    "GET /readyz": OPEN,
    "GET /": OPEN,
}
TABLE = BATCHES | CHATS | WITH_ANY | ADMINISTRATORS | EVERYBODYS
# What these change in the database is undone; the others change nothing there, or need transactions of their own.
CHANGES_ROWS = {*BATCHES, "POST /v1/batches/pause", "POST /v1/batches/resume"}
# The scopes of a key that has all but those that the address asks for.
LACKING = {
    **dict.fromkeys(BATCHES, (Scope.CHAT,)),
    **dict.fromkeys(CHATS, (Scope.BATCHES,)),
    **dict.fromkeys(WITH_ANY, ()),
    **dict.fromkeys([*ADMINISTRATORS, *EVERYBODYS], (Scope.BATCHES, Scope.CHAT)),
}


def endpoints(patterns=None, before="/"):
    """METHOD address of everything that the server answers, the admin's pages left out."""
    for each in get_resolver().url_patterns if patterns is None else patterns:
        text = re.sub(r"\(\?P<\w+>\[[^]]*\]\+\)|<\w+:\w+>", "{id}", str(each.pattern)).strip("^$")
        if text.startswith("admin/"):
            continue
        if hasattr(each, "url_patterns"):
            yield from endpoints(each.url_patterns, before + text)
            continue
        methods = set(getattr(each.callback, "actions", {"get": ""}))
        for method in methods - ({"head"} if "get" in methods else set()):  # a GET is answered to HEAD too
            yield f"{method.upper()} {before}{text}"


def test_each_endpoint_has_a_row():
    found = list(endpoints())
    assert sorted(found) == sorted(TABLE)


def whole(answer):
    return answer.getvalue() if answer.streaming else answer.content


class World:
    """Rows of one owner, and what the callers send."""

    def __init__(self, api, work, backend, create, upload):
        self.api, self.backend = api, backend
        self.keys = {"no key": None}
        self._lacking = {}
        theirs, others, admins = (Owner.objects.create(name=name) for name in ("Ann", "Bob", "Root"))
        self.owner = theirs
        self.keys["owner"] = self.key(theirs, Scope.BATCHES, Scope.CHAT)
        self.keys["other owner"] = self.key(others, Scope.BATCHES, Scope.CHAT)
        self.keys["administrator"] = self.key(admins, *Scope)
        self.keys["expired key"] = self.key(theirs, *Scope, expires_at=timezone.now() - timedelta(seconds=1))
        api.credentials(HTTP_AUTHORIZATION=f"Bearer {self.keys['owner']}")
        backend.on("bad", Action(400, error_body("bad")))
        done = work.run(create([line("a"), line("bad")])["id"])
        running = create([line("b")])
        work.validate(running["id"])
        self.ids = {"done": done["id"], "running": running["id"], "file": running["input_file_id"]}
        self.ids["result"] = done["output_file_id"]
        announced = {"filename": "a.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"}
        self.ids["upload"] = api.post("/v1/uploads", announced, format="json").json()["id"]
        self.ids["part"] = self.send("POST /v1/uploads/{id}/parts", "owner", keep=True).json()["id"]
        self.announced = announced
        Pulse.stamp("ticked")
        api.credentials()

    def key(self, owner, *scopes, **options):
        return ApiKey.objects.make("test", owner=owner, scopes=scopes, **options)[1]

    def secret(self, endpoint, caller):
        if caller != "key without the scope":
            return self.keys[caller]
        scopes = LACKING[endpoint]
        if scopes not in self._lacking:
            self._lacking[scopes] = self.key(self.owner, *scopes)
        return self._lacking[scopes]

    def address(self, endpoint, ids):
        path = endpoint.split(" ")[1]
        if "/batches/" in path:
            over = endpoint.startswith("DELETE") or path.endswith(("/retry", "/reasons", "/output", "/errors"))
            return path.replace("{id}", ids["done" if over else "running"])
        if "/models/" in path:
            return path.replace("{id}", self.backend.models[0])
        kind = next((kind for kind in ("upload", "file") if f"/{kind}s/" in path), "")
        return path.replace("{id}", ids[kind] if kind else "sha256:" + hashlib.sha256(b"a").hexdigest())

    def body(self, endpoint, ids):
        method, path = endpoint.split(" ")
        model = self.backend.models[0]
        forms = {
            "/v1/files": {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", b"{}\n")},
            "/v1/uploads/{id}/parts": {"data": SimpleUploadedFile("a", b"{}\n")},
        }
        bodies = {
            "/v1/uploads": getattr(self, "announced", {}),
            "/v1/uploads/{id}/complete": {"part_ids": [ids.get("part")]},
            "/v1/batches": {"input_file_id": ids["file"], "endpoint": CHAT, "completion_window": "24h"},
            "/v1/batches/{id}/extend": {"completion_window": "7d"},
            "/v1/batches/{id}/priority": {"priority": 1},
            "/v1/messages": {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "a"}]},
            "/api/chat": {"model": model, "messages": [{"role": "user", "content": "a"}], "stream": False},
            "/api/copy": {"source": model, "destination": "copy"},
        }
        if method == "POST" and path in forms:
            return {"data": forms[path], "format": "multipart"}
        if method != "GET" and path in ENDPOINTS:
            return {"data": line("a", url=path)["body"], "format": "json"}
        if method != "GET" and path.startswith("/api/") and path not in bodies and "blobs" not in path:
            return {"data": {"model": model, "prompt": "a", "input": "a", "stream": False}, "format": "json"}
        if path.startswith("/api/blobs"):
            return {"data": b"a", "content_type": "application/octet-stream"} if method == "POST" else {}
        return {"data": bodies.get(path, {}), "format": "json"} if method == "POST" else {}

    def send(self, endpoint, caller, *, ids=None, keep=False, address=None, method=None, **headers):
        """The answer; what was changed for it is undone, unless it is to be kept."""
        ids = ids or self.ids
        if secret := self.secret(endpoint, caller):
            headers["HTTP_AUTHORIZATION"] = f"Bearer {secret}"
        verb = method or endpoint.split(" ")[0]

        def ask():
            ask = getattr(self.api, verb.lower())
            answer = ask(address or self.address(endpoint, ids), **self.body(endpoint, ids), **headers)
            answer.whole = whole(answer)
            return answer

        if keep or endpoint not in CHANGES_ROWS:
            return ask()
        with transaction.atomic():
            answer = ask()
            transaction.set_rollback(True)
        return answer


@pytest.fixture
def world(api, work, backend, create, upload):
    return World(api, work, backend, create, upload)


@pytest.mark.slow
def test_each_endpoint_answers_each_caller_as_the_table_says(world):
    found = {}
    for endpoint, wanted in TABLE.items():
        got = tuple(world.send(endpoint, caller).status_code for caller in CALLERS)
        if got != wanted:
            found[endpoint] = dict(zip(CALLERS, got, strict=True))
    assert not found, json.dumps(found, indent=1)


# Nothing tells that another owner's row is there


def made_up(ids):
    """Ids of the same form that name nothing."""
    return {name: re.sub(r"[0-9a-zA-Z]{20,}$", lambda found: "0" * len(found[0]), each) for name, each in ids.items()}


def told(answer, ids):
    """All that a client gets, the ids that it named itself and what differs from answer to answer left out."""
    text = answer.whole.decode()
    for each in ids.values():
        text = text.replace(each, "ID")
    changing = {"x-request-id", "openai-processing-ms"}
    return answer.status_code, text, {name: each for name, each in answer.items() if name.lower() not in changing}


# Ways to ask for a row: another method, something behind the address, a header.
VARIANTS = [
    *((method, ending, {}) for method in (None, "HEAD", "OPTIONS", "PUT") for ending in ("", "?order=asc")),
    *((None, ending, {}) for ending in ("/", ".json", "?format=json", "?offset=0", "?after=0", "%20", "%00")),
    *((None, "", {name: each}) for name, each in (("HTTP_RANGE", "bytes=0-1"), ("HTTP_IF_NONE_MATCH", "*"))),
    *((None, "", {name: each}) for name, each in (("HTTP_IDEMPOTENCY_KEY", "k"), ("HTTP_ACCEPT", "text/html"))),
]
WITH_IDS = [endpoint for endpoint, statuses in TABLE.items() if statuses == ROW]


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["other owner", "administrator"])
def test_another_owners_row_is_as_one_that_never_was(world, caller):
    unknown = made_up(world.ids)
    different = []
    for endpoint in WITH_IDS:
        for method, ending, headers in VARIANTS:
            asked = {"method": method, **headers}
            there = told(
                world.send(endpoint, caller, address=world.address(endpoint, world.ids) + ending, **asked), world.ids
            )
            address = world.address(endpoint, unknown) + ending
            nowhere = told(world.send(endpoint, caller, ids=unknown, address=address, **asked), unknown)
            if there != nowhere:
                different.append((endpoint, method, ending, there, nowhere))
    assert not different


def test_a_result_file_of_another_owner_is_as_none(world, settings, api, work):
    settings.EARLY_RESULT_FILES = True
    key = {"HTTP_AUTHORIZATION": f"Bearer {world.keys['owner']}"}
    early = api.get(f"/v1/batches/{world.ids['running']}", **key).json()["output_file_id"]
    for file_id in (world.ids["result"], early):
        ids, unknown = {"file": file_id}, {"file": "file-" + "0" * 22}
        assert whole(api.get(f"/v1/files/{file_id}/content", **key)).count(b"\n") == (file_id == world.ids["result"])
        for ending in ("", "?offset=0", "?offset=1", "?offset=x"):
            answers = []
            for each in (ids, unknown):
                address = f"/v1/files/{each['file']}/content{ending}"
                answer = world.send("GET /v1/files/{id}/content", "other owner", address=address)
                answers.append(told(answer, each))
            assert answers[0] == answers[1]
            assert answers[0][0] in (400, 404)


def test_no_cursor_tells_that_an_id_is_there(world):
    unknown = made_up(world.ids)
    for path, name in (("/v1/files", "file"), ("/v1/files", "result"), ("/v1/batches", "done")):
        for order in ("asc", "desc"):
            answers = []
            for ids in (world.ids, unknown):
                address = f"{path}?after={ids[name]}&order={order}"
                answers.append(told(world.send(f"GET {path}", "other owner", address=address), ids))
            assert answers[0] == answers[1]
            assert answers[0][0] == 400
        own = world.send(f"GET {path}", "owner", address=f"{path}?after={world.ids[name]}")
        assert own.status_code == 200


def test_lists_have_ones_own_rows_alone(world):
    for path in ("/v1/files", "/v1/batches"):
        for caller in ("other owner", "administrator"):
            assert json.loads(world.send(f"GET {path}", caller).whole)["data"] == []
        assert len(json.loads(world.send(f"GET {path}", "owner").whole)["data"]) > 1


def test_ids_in_another_case_name_nothing(world):
    for endpoint in WITH_IDS:
        address = world.address(endpoint, {name: each.upper() for name, each in world.ids.items()})
        assert world.send(endpoint, "owner", address=address.replace("BATCH_", "batch_")).status_code in (404, 400)


def test_a_batch_of_another_owners_file_is_as_one_of_no_file(world, work, api):
    """Created, read, and asked again: each answer is that for an id that never was."""
    answers = []
    for ids in (world.ids, made_up(world.ids)):
        key = {"HTTP_AUTHORIZATION": f"Bearer {world.keys['other owner']}"}
        batch_id = world.send("POST /v1/batches", "other owner", ids=ids, keep=True).json()["id"]
        work.validate(batch_id)
        work.finalize(batch_id)
        path = f"/v1/batches/{batch_id}"
        failed = api.get(path, **key).json()
        asked = [api.post(f"{path}/retry", **key), api.get(f"{path}/progress", **key), api.get(f"{path}/errors", **key)]
        texts = [whole(each) for each in asked]
        seen = json.dumps(
            [failed["status"], failed["errors"], [each.status_code for each in asked], *map(bytes.decode, texts)]
        )
        # Times, and what is free on the disk, differ.
        seen = seen.replace(batch_id, "BATCH").replace(ids["file"], "FILE")
        answers.append(re.sub(r"\d{10,}", "N", seen))
    assert answers[0] == answers[1]
    assert "Cannot find file FILE." in answers[0]


def test_an_idempotency_key_is_the_owners(world):
    announced = {"HTTP_IDEMPOTENCY_KEY": "k"}
    first = world.send("POST /v1/uploads", "owner", keep=True, **announced).json()["id"]
    again = world.send("POST /v1/uploads", "owner", **announced)
    assert json.loads(again.whole)["id"] == first
    second_key = world.key(world.owner, Scope.BATCHES)
    world.keys["owner"] = second_key
    assert json.loads(world.send("POST /v1/uploads", "owner", **announced).whole)["id"] == first
    for caller in ("other owner", "administrator"):
        assert json.loads(world.send("POST /v1/uploads", caller, **announced).whole)["id"] != first


def test_what_is_made_belongs_to_whoever_asked_for_it(world, work):
    assert set(File.objects.values_list("owner__name", flat=True)) == {"Ann"}  # input, retry's and results
    batch = json.loads(world.send("POST /v1/batches/{id}/retry", "owner", keep=True).whole)
    for path in (f"/v1/batches/{batch['id']}", f"/v1/files/{batch['input_file_id']}"):
        statuses = [
            world.api.get(path, HTTP_AUTHORIZATION=f"Bearer {world.keys[caller]}").status_code
            for caller in ("owner", "other owner")
        ]
        assert statuses == [200, 404]


def test_no_answer_is_used_again_for_another_owner(world, work, settings, api, upload):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    same = line("same", body={"temperature": 0})
    sent = []
    for caller in ("owner", "owner", "other owner", "other owner"):
        api.credentials(HTTP_AUTHORIZATION=f"Bearer {world.keys[caller]}")
        body = {"input_file_id": upload([same])["id"], "endpoint": CHAT, "completion_window": "24h"}
        before = world.backend.arrived().count("same")
        assert work.run(api.post("/v1/batches", body, format="json").json()["id"])["status"] == "completed"
        sent.append(world.backend.arrived().count("same") - before)
    assert sent == [1, 0, 1, 0]


def test_progress_names_nothing_of_others(world, work, api, upload):
    """It has the speed of the model from another owner's batch, and waits for that owner's turn."""
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {world.keys['owner']}")
    body = {"endpoint": CHAT, "completion_window": "24h"}
    lines = [line(f"n{number}") for number in range(8)]
    theirs = api.post("/v1/batches", body | {"input_file_id": upload(lines)["id"]}, format="json").json()
    work.run(theirs["id"])
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {world.keys['other owner']}")
    own = api.post("/v1/batches", body | {"input_file_id": upload(lines)["id"]}, format="json").json()
    work.validate(own["id"])
    for path in ("progress", "errors", "output", "reasons"):
        answer = api.get(f"/v1/batches/{own['id']}/{path}")
        text = whole(answer).decode()
        assert not [each for each in (theirs["id"], *world.ids.values()) if each in text]
    assert "other lines for gemma3:12b" in api.get(f"/v1/batches/{own['id']}/progress").json()["estimated_from"]


def test_no_key_opens_the_admins_pages(world):
    """Each of them asks for a log-in, whatever key comes along."""
    admin = next(each for each in get_resolver().url_patterns if str(each.pattern) == "admin/")
    paths = [str(each.pattern) for each in admin.url_patterns if "<" not in str(each.pattern)]
    paths += [f"batches/batch/{world.ids['done']}/{part}" for part in ("change/", "moves/", "download/input/")]
    for path in paths:
        if path in ("login/", "logout/", "jsi18n/"):
            continue
        answer = Client().get(f"/admin/{path}", HTTP_AUTHORIZATION=f"Bearer {world.keys['administrator']}")
        assert answer.status_code in (302, 404, 405) or "login" in answer.headers.get("HX-Redirect", ""), path
