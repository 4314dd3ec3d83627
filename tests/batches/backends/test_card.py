"""Several vLLM servers that share one card: one is awake, and the models of all are answered."""

import json
import threading

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from batches import backends, registry
from batches.models import Backend, Line, PausedModel
from batchserver import env
from tests.conftest import CHAT, line, several_connections
from tests.fake_backend import TRIAL, FakeBackend, _Handler, answer
from tests.stack import eventually


class VllmHandler(_Handler):
    def do_GET(self):
        fake = self.fake
        if self.path == "/v1/models":
            models = [{"id": each, "object": "model", "created": 1, "owned_by": fake.owner} for each in fake.models]
            self._reply({"object": "list", "data": models})
        elif self.path == "/version":
            self._reply({"version": "0.32.0"})
        elif self.path == "/is_sleeping" and fake.sleeps is not None:
            self._reply({"is_sleeping": fake.sleeps})
        else:
            self._send(404, json.dumps({"detail": "Not Found"}).encode())

    def do_POST(self):
        fake = self.fake
        path = self.path.partition("?")[0]
        if path.startswith("/v1/"):
            fake.on_the_way += 1
            fake.wait(fake.late_s)
            while fake.sleeps and not fake._release.is_set():
                fake.wait(0.05)  # takes the request, and answers once it is woken
            super().do_POST()
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fake.card.append((fake.models[0], self.path))
        if path in fake.broken:
            self._send(fake.broken[path], b"{}")
            return
        if path == "/sleep":
            fake.sleeps = True
        elif path == "/wake_up" and "weights" not in self.path:
            fake.sleeps = False
        self._reply({})

    def _reply(self, body):
        self._send(200, json.dumps(body).encode())


class FakeVllm(FakeBackend):
    def __init__(self, *models, card):
        super().__init__()
        self.models = list(models)
        self.owner = "vllm"
        self.sleeps: bool | None = True  # None: without its developers' mode
        self.card = card  # what the servers of one card were asked, in order
        self.broken: dict[str, int] = {}
        self.late_s = 0.0  # a request is on its way for so long
        self.on_the_way = 0  # requests, those that arrived too

    def handler(self):
        return VllmHandler


@pytest.fixture
def card(settings):
    """Two servers, of which the first is awake."""
    asked = []
    with FakeVllm("one", "one-lora", card=asked) as first, FakeVllm("two", card=asked) as second:
        first.sleeps = False
        settings.BACKEND_URL = settings.BACKEND_NAME = f"{first.url},{second.url}"
        yield first, second


def lines(*names):
    """Lines named by their model and a letter."""
    return [line(each, body={"model": each.rpartition("/")[0]}) for each in names]


def asked(card):
    return [(model, path.partition("?")[0]) for model, path in card[0].card]


def test_each_model_is_woken_once_and_the_other_server_sleeps_meanwhile(create, work, card):
    first, second = card
    names = [f"{model}/{letter}" for letter in "abc" for model in ("two", "one", "one-lora")]
    batch = work.run(create(lines(*names))["id"])
    assert batch["request_counts"] == {"total": 9, "completed": 9, "failed": 0}
    assert {each.rpartition("/")[0] for each in first.arrived() if each != TRIAL} == {"one", "one-lora"}
    assert {each.rpartition("/")[0] for each in second.arrived() if each != TRIAL} == {"two"}
    swaps = asked(card)
    assert swaps in (
        [("one", "/sleep"), ("two", "/wake_up")],
        [("one", "/sleep"), ("two", "/wake_up"), ("two", "/sleep"), ("one", "/wake_up")],
    )
    assert all(path == "/sleep?level=1&mode=wait" for _, path in first.card if path.startswith("/sleep"))
    assert [first.sleeps, second.sleeps].count(False) == 1


def test_after_a_sleep_of_level_2_the_weights_are_read_again(create, work, card, settings):
    settings.BACKEND_SLEEP_LEVEL = 2
    assert work.run(create(lines("two/a"))["id"])["request_counts"]["completed"] == 1
    assert card[0].card == [
        ("one", "/sleep?level=2&mode=wait"),
        ("two", "/wake_up?tags=weights"),
        ("two", "/collective_rpc"),
        ("two", "/wake_up?tags=kv_cache"),
        ("two", "/reset_prefix_cache"),
    ]


def test_the_probe_lists_the_models_of_all_and_as_loaded_those_that_are_awake(card):
    state = backends.probe()
    assert (state.kind, state.version) == ("vllm-card", "0.32.0")
    assert (state.names, state.loaded) == (["one", "one-lora", "two"], ["one", "one-lora"])


def _no_dev_mode(second):
    second.sleeps = None


def _no_vllm(second):
    second.owner = "llamacpp"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_no_dev_mode, "cannot be put to sleep. Start it with VLLM_SERVER_DEV_MODE=1 in its environment, and with"),
        (_no_vllm, "is no vLLM, and vLLM alone can leave a card to others by sleeping"),
        (FakeVllm.stop, "No model server answers at"),
    ],
)
def test_a_server_that_cannot_share_the_card_is_named_with_what_to_do(card, change, said, db):
    change(card[1])
    with pytest.raises(backends.Unreachable) as error:
        backends.probe()
    assert said in str(error.value)
    assert card[1].url in str(error.value)
    assert "one of the servers that BACKEND_URL names" in str(error.value)
    assert registry.report_backend().pause_reason == str(error.value)


def test_a_model_that_cannot_be_woken_waits_and_costs_no_line(create, work, card):
    card[1].broken["/wake_up"] = 500
    batch = create(lines("two/a", "one/a"))["id"]
    work.validate(batch)
    work.drive()
    assert dict(Line.objects.values_list("custom_id", "attempts")) == {"two/a": 0, "one/a": 0}
    assert f"cannot load two (HTTP 500: {card[1].url}/wake_up failed)" in PausedModel.objects.get().reason
    card[1].broken.clear()
    assert work.run(batch)["request_counts"]["completed"] == 2


def test_a_server_that_lost_its_developers_mode_pauses_the_backend(create, work, card):
    card[1].broken["/wake_up"] = 404
    work.validate(create(lines("two/a"))["id"])
    work.drive()
    assert "VLLM_SERVER_DEV_MODE=1" in Backend.objects.get().pause_reason
    assert Line.objects.get().attempts == 0


def test_a_persons_request_wakes_the_server_of_its_model(api, card):
    registry.report_backend()
    body = {"model": "two", "messages": [{"role": "user", "content": "x"}]}
    reply = api.post(CHAT, body, format="json")
    assert (reply.status_code, card[1].arrived(), card[0].arrived()) == (200, ["x"], [])
    assert asked(card) == [("one", "/sleep"), ("two", "/wake_up")]
    assert reply.json()["choices"] == answer(CHAT, body)["choices"]


def test_a_person_is_told_why_a_model_cannot_be_woken(api, card):
    registry.report_backend()
    card[1].broken["/wake_up"] = 404
    reply = api.post(CHAT, {"model": "two", "messages": [{"role": "user", "content": "x"}]}, format="json")
    assert reply.status_code == 502
    assert "VLLM_SERVER_DEV_MODE=1" in reply.json()["error"]["message"]


def test_a_batch_goes_on_after_a_person_took_the_card(create, work, card, api):
    batch = create(lines(*(f"one/{letter}" for letter in "abcdef")))["id"]
    work.validate(batch)
    card[0].sleeps, card[1].sleeps = True, False
    assert work.run(batch)["request_counts"]["completed"] == 6
    assert asked(card) == [("two", "/sleep"), ("one", "/wake_up")]


@several_connections
def test_lines_that_reach_a_server_just_put_to_sleep_are_sent_again(create, work, card, api, settings):
    """They hang there, and must not keep the load waiting that wakes their server."""
    settings.INTERACTIVE_HOLD_S = 0.2
    batch = create(lines(*(f"one/{letter}" for letter in "abcd")))["id"]
    work.validate(batch)
    card[0].late_s = 2.0

    def drive():
        try:
            work.drive()
        finally:
            connection.close()

    thread = threading.Thread(target=drive)
    thread.start()
    eventually(lambda: card[0].on_the_way >= 2, what="a line on its way")
    card[0].late_s = 0.0
    body = {"model": "two", "messages": [{"role": "user", "content": "x"}]}
    assert api.post(CHAT, body, format="json").status_code == 200
    thread.join(60)
    assert not thread.is_alive()
    assert work.run(batch)["request_counts"]["completed"] == 4
    assert asked(card)[-2:] == [("two", "/sleep"), ("one", "/wake_up")]
    assert not Line.objects.exclude(attempts=0).exists()


@pytest.mark.parametrize(("sleeps", "is_told"), [(True, True), (False, False), (None, False)])
def test_one_vllm_alone_that_sleeps_is_told_by_the_probe(settings, sleeps, is_told):
    with FakeVllm("one", card=[]) as server:
        server.sleeps = sleeps
        settings.BACKEND_URL = server.url
        if is_told:
            with pytest.raises(backends.Unreachable, match=r"vLLM sleeps.*/wake_up"):
                backends.probe()
        else:
            assert backends.probe().kind == "vllm"


def test_an_address_that_begins_like_another_is_not_taken_for_it():
    server = backends.Card("http://h:80", urls=("http://h:80", "http://h:8000"))
    connection = server.connect()
    assert [connection._at(f"http://h:{port}/sleep", {})[0].server.base_url for port in (80, 8000)] == list(server.urls)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", "http://default:1"),
        ("http://a:1/", "http://a:1"),
        (" http://a:1/ , http://b:2,", "http://a:1,http://b:2"),
        ("http://a:1,nonsense", None),
        ("http://a:1,http://a:1/", None),
        ("http://a:1,http://user@b:2", None),
    ],
)
def test_backend_url_is_one_address_or_several(value, url):
    if url is None:
        with pytest.raises(ImproperlyConfigured, match="BACKEND_URL"):
            env.urls({"BACKEND_URL": value}, "BACKEND_URL", "http://default:1")
    else:
        assert env.urls({"BACKEND_URL": value}, "BACKEND_URL", "http://default:1") == url
