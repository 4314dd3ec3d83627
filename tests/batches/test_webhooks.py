"""Events to WEBHOOK_URL, taken by a real receiver and checked as the official client checks them."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from django.contrib.admin.utils import quote
from django.db import IntegrityError, connection
from django.urls import reverse
from django.utils import timezone
from urllib3.exceptions import NewConnectionError

from batches import forecasts, lifecycle, webhooks
from batches.models import Batch, Status, WebhookDelivery
from common import ids
from common.models import Owner
from common.sockets import NotPublic, public_addresses, watched_pools
from tests.conftest import line, several_connections
from tests.contract import conform
from tests.stack import ROOT, eventually, free_port
from tests.whole_server import client_of, finish, submit

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
DAY = timedelta(hours=24)


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0  # send it byte by byte, with this pause
    during: object = None  # called before the answer


class Receiver:
    """Use as a context manager. It takes requests, and answers 200 unless told otherwise."""

    def __enter__(self):
        receiver = self
        self.seen: list[Request] = []
        self.answers: list[Answer] = []  # one for each of the next requests
        self.open = threading.Event()  # while it is not set, requests arrive and wait for their answer
        self.open.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append(Request(self.path, dict(self.headers), body))
                answer = receiver.answers.pop(0) if receiver.answers else Answer()
                receiver.open.wait(60)
                if answer.during:
                    answer.during()
                head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
                content = f"HTTP/1.1 {answer.status} So\r\n{head}Content-Length: 2\r\n\r\nok".encode()
                with suppress(OSError):  # the sender may have gone away
                    for part in [content] if not answer.drip_s else [bytes([byte]) for byte in content]:
                        self.wfile.write(part)
                        time.sleep(answer.drip_s)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self.server.shutdown()
        self.server.server_close()  # waits for the requests that are being answered

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook/?key=k"

    def events(self):
        return [json.loads(request.body) for request in self.seen]


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def hook(receiver, settings):
    """A receiver that the product is configured to tell."""
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRET = receiver.url, SECRET
    return receiver


@pytest.fixture
def failed(hook, create, work):
    """A batch that failed; its event is due."""
    batch = create([line("a", method="GET")])
    work.validate(batch["id"])
    return work.batch(batch["id"])


def unwrap(request, secret=SECRET):
    return openai.OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=secret)


def make_due():
    """The backoff is over."""
    WebhookDelivery.objects.all().waiting().update(next_at=timezone.now() - timedelta(seconds=1))


def send_due():
    """All that is due, as the threads do it."""
    while addresses := WebhookDelivery.objects.all().due().addresses():
        for each in addresses:
            webhooks.send_due(each)


def send_again_now():
    make_due()
    send_due()


def send_and_see_it_wait(wait_s):
    """It fails, and is due again after `wait_s`, give or take a quarter."""
    before = timezone.now()
    send_due()
    next_at = WebhookDelivery.objects.get().next_at
    assert next_at - before > timedelta(seconds=wait_s * 0.7)
    assert next_at - timezone.now() < timedelta(seconds=wait_s * 1.3)


# What is told


def complete(work, api, batch_id):
    work.run(batch_id)


def cancel(work, api, batch_id):
    work.validate(batch_id)
    assert api.post(f"/v1/batches/{batch_id}/cancel").status_code == 200
    work.finalize(batch_id)


def expire(work, api, batch_id):
    work.validate(batch_id)
    Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch_id)


def fail(work, api, batch_id):
    work.validate(batch_id)


@pytest.mark.parametrize(
    ("end", "status"), [(complete, "completed"), (fail, "failed"), (expire, "expired"), (cancel, "cancelled")]
)
def test_each_end_is_told_once_and_the_official_client_takes_it(
    create, work, api, backend, hook, end, status, settings
):
    batch = create([line("a", method="GET" if status == "failed" else "POST")])["id"]
    end(work, api, batch)
    work.finalize(batch)  # again: a message can come twice
    told = work.batch(batch)
    assert told["status"] == status

    send_due()
    send_due()

    (request,) = hook.seen
    assert request.path == "/hook/?key=k"
    assert request.headers["Content-Type"] == "application/json"
    event = unwrap(request)
    assert (event.type, event.object, event.data.id) == (f"batch.{status}", "event", batch)
    assert event.created_at == told[f"{status}_at"]
    assert request.headers["webhook-id"] == event.id
    assert event.id.startswith("evt_")
    conform(f"WebhookBatch{status.capitalize()}", json.loads(request.body))
    delivery = WebhookDelivery.objects.get()
    assert (delivery.attempts, delivery.next_at, delivery.last_error) == (1, None, "")
    assert delivery.delivered_at is not None


def test_another_secret_or_body_is_refused(failed, hook):
    send_due()
    (request,) = hook.seen
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(request, "whsec_" + base64.b64encode(bytes(32)).decode())
    request.body = request.body.replace(b"failed", b"completed")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(request)


@pytest.fixture
def too_large(create, work, backend):
    """A batch in progress, whose answers the disk has no room for."""
    batch_id = create([line("a")])["id"]
    work.validate(batch_id)
    work.drive()
    Batch.objects.update(status=Status.IN_PROGRESS, total=10**9)
    return Batch.objects.get()


def test_a_warning_is_told_once_if_it_is_wanted(hook, too_large, settings):
    settings.WEBHOOK_WARNINGS = True
    for _ in range(2):
        forecasts.review()
    assert [each["code"] for each in Batch.objects.get().warnings] == ["disk_too_small"]
    send_due()
    [request] = hook.seen
    event = json.loads(request.body)
    assert (event["type"], event["data"]) == ("batch.warning", {"id": too_large.pk})
    # It holds no more, and then it holds again: nothing new for the same window.
    for total in (2, 10**9):
        Batch.objects.update(total=total)
        forecasts.review()
    assert WebhookDelivery.objects.count() == 1
    Batch.objects.update(warnings=[], expires_at=too_large.expires_at + timedelta(days=1))
    forecasts.review()
    assert WebhookDelivery.objects.count() == 2


def test_a_warning_is_not_told_if_nobody_asked_for_it(hook, too_large):
    forecasts.review()
    assert Batch.objects.get().warnings
    assert not WebhookDelivery.objects.exists()


def test_without_an_address_nothing_is_stored_or_sent(create, work, receiver):
    work.validate(create([line("a", method="GET")])["id"])
    send_due()
    assert not WebhookDelivery.objects.exists()
    assert receiver.seen == []


def test_an_event_waits_while_the_address_is_taken_away(failed, hook, settings):
    settings.WEBHOOK_URL = ""
    send_due()
    webhooks.deliver_due()
    assert hook.seen == []
    settings.WEBHOOK_URL = hook.url
    send_due()
    assert len(hook.seen) == 1


def test_the_end_and_its_event_are_stored_together(create, work, hook):
    """An event that cannot be stored undoes the move: neither is ever there without the other."""
    batch = create([line("a", method="GET")])["id"]
    taken = ids.derived_id("evt_", batch, "batch.failed")
    WebhookDelivery.objects.create(id=taken, batch_id=batch, event="x", created_at=timezone.now())
    with pytest.raises(IntegrityError):
        lifecycle.move(batch, Status.FAILED)
    assert Batch.objects.get().status == Status.VALIDATING


# What the target makes of it


def test_a_target_that_fails_gets_the_same_event_later(failed, hook):
    hook.answers = [Answer(500), Answer(503)]
    send_and_see_it_wait(5)
    assert WebhookDelivery.objects.get().last_error == "HTTP 500"
    send_due()
    assert len(hook.seen) == 1  # the wait is not over
    make_due()
    send_and_see_it_wait(30)
    send_again_now()

    first, second, third = hook.seen
    assert first.body == second.body == third.body
    assert first.headers["webhook-id"] == third.headers["webhook-id"]
    assert unwrap(third).data.id == failed["id"]
    delivery = WebhookDelivery.objects.get()
    assert (delivery.attempts, delivery.next_at, delivery.last_error) == (3, None, "")


@pytest.mark.parametrize(("attempts", "wait_s"), [(2, 120), (5, 3600), (6, 7200), (20, 7200)])
def test_it_waits_longer_each_time(failed, hook, attempts, wait_s):
    hook.answers = [Answer(500)]
    WebhookDelivery.objects.update(attempts=attempts)
    send_and_see_it_wait(wait_s)


@pytest.mark.parametrize(("asked", "wait_s"), [("100", 100), ("1", 5), ("99999999", 7200), ("soon", 5), ("-9", 5)])
def test_a_target_may_ask_for_a_longer_wait_within_reason(failed, hook, asked, wait_s):
    hook.answers = [Answer(429, {"Retry-After": asked})]
    send_and_see_it_wait(wait_s)


def test_no_redirect_is_followed(failed, hook):
    hook.answers = [Answer(302, {"Location": "/elsewhere"})]
    send_due()
    assert len(hook.seen) == 1
    assert WebhookDelivery.objects.get().last_error == "HTTP 302"


def test_a_target_that_is_gone_for_good_is_left_alone(failed, hook):
    hook.answers = [Answer(410)]
    send_due()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.next_at, delivery.delivered_at, delivery.last_error) == (None, None, "HTTP 410; given up")


def test_an_event_is_given_up_after_a_day(failed, hook):
    hook.answers = [Answer(500), Answer(500)]
    WebhookDelivery.objects.update(created_at=timezone.now() - DAY + timedelta(hours=1))
    send_due()
    assert WebhookDelivery.objects.get().next_at is not None
    WebhookDelivery.objects.update(created_at=timezone.now() - DAY)
    send_again_now()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.next_at, delivery.delivered_at, delivery.last_error) == (None, None, "HTTP 500; given up")


@pytest.mark.parametrize("drip_s", [0.0, 0.02])
def test_a_target_that_hangs_or_drips_is_cut_off(failed, hook, monkeypatch, drip_s):
    monkeypatch.setattr(webhooks, "DEADLINE_S", 0.5)
    if drip_s:
        # A status that is no answer yet: its headers take 20 s.
        hook.answers = [Answer(200, {"X": "x" * 1000}, drip_s=drip_s)]
    else:
        hook.open.clear()
    started = time.monotonic()
    send_due()
    assert time.monotonic() - started < 5
    delivery = WebhookDelivery.objects.get()
    assert (delivery.last_error, delivery.delivered_at) == ("no answer within 0.5 s", None)


def test_the_body_of_an_answer_is_not_waited_for(failed, settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

        def answer():
            caller, _ = listener.accept()
            with caller:
                caller.recv(2**16)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
                while caller.recv(2**16):
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        settings.WEBHOOK_URL = url
        started = time.monotonic()
        send_due()
        thread.join(20)
    assert time.monotonic() - started < webhooks.DEADLINE_S / 2
    assert WebhookDelivery.objects.get().delivered_at is not None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:{port}/", "no answer (NewConnectionError)"),
        ("http://.example/", "no answer (InvalidURL)"),
    ],
)
def test_a_target_that_cannot_be_reached_is_tried_again(failed, settings, url, problem):
    settings.WEBHOOK_URL = url.format(port=free_port())
    send_due()
    delivery = WebhookDelivery.objects.get()
    assert delivery.last_error == problem
    assert delivery.next_at is not None


def test_neither_the_secret_nor_the_address_is_logged_or_stored(failed, hook, caplog, settings):
    hook.answers = [Answer(500)]
    send_due()
    send_again_now()
    settings.WEBHOOK_URL = f"http://user:password@127.0.0.1:{free_port()}/?token=t"
    webhooks.send_again(WebhookDelivery.objects.all())
    send_due()
    assert "batch.failed was delivered" in caplog.text
    assert "batch.failed was not delivered: HTTP 500" in caplog.text
    told = caplog.text + WebhookDelivery.objects.get().last_error
    for secret in (SECRET[6:], "whsec", "password", "token", "key=k"):
        assert secret not in told


# Who sends


def test_what_is_being_sent_is_not_sent_by_another(failed, hook):
    def send_too():
        try:
            send_due()
        finally:
            connection.close()

    hook.answers = [Answer(during=send_too)]
    send_due()
    assert len(hook.seen) == 1


@several_connections
def test_many_senders_at_once_send_each_event_once(create, work, hook):
    for _ in range(5):
        work.validate(create([line("a", method="GET")])["id"])
    start = threading.Barrier(3)

    def send():
        start.wait(10)
        try:
            send_due()
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(event["data"]["id"] for event in hook.events()) == sorted(Batch.objects.values_list("pk", flat=True))
    assert not WebhookDelivery.objects.all().waiting().exists()


def test_what_a_killed_sender_left_is_sent_once_its_claim_is_over(failed, hook):
    WebhookDelivery.objects.update(attempts=1, next_at=timezone.now() + webhooks.RESERVED_FOR)
    send_due()
    assert hook.seen == []
    send_again_now()
    assert WebhookDelivery.objects.get().attempts == 2
    assert len(hook.seen) == 1


def test_a_sender_whose_claim_ran_out_stores_nothing(failed, hook):
    def overtake():
        WebhookDelivery.objects.update(attempts=2, next_at=None, last_error="theirs")
        connection.close()

    hook.answers = [Answer(500, during=overtake)]
    send_due()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.attempts, delivery.next_at, delivery.last_error) == (2, None, "theirs")


def senders():
    return [thread for thread in threading.enumerate() if thread.name.startswith(webhooks.THREAD)]


def test_a_thread_sends_and_ends(failed, hook):
    hook.open.clear()
    webhooks.deliver_due()
    (thread,) = senders()
    eventually(lambda: hook.seen, what="the event")
    make_due()
    webhooks.deliver_due()
    assert senders() == [thread]
    hook.open.set()
    thread.join(20)
    assert not thread.is_alive()
    assert WebhookDelivery.objects.get().delivered_at is not None


# What a person sees


def test_the_admin_shows_deliveries_and_sends_them_again(failed, hook, admin_client, django_user_model):
    send_due()
    url = reverse("admin:batches_webhookdelivery_changelist")
    page = admin_client.get(url).text
    assert reverse("admin:batches_batch_change", args=[quote(failed["id"])]) in page
    delivery = WebhookDelivery.objects.get()
    assert SECRET not in admin_client.get(reverse("admin:batches_webhookdelivery_change", args=[delivery.pk])).text

    again = {"action": "send_again", "_selected_action": [delivery.pk]}
    assert f"Sending batch.failed of {failed['id']}." in admin_client.post(url, again, follow=True).text
    send_due()
    assert len(hook.seen) == 2
    assert hook.seen[0].body == hook.seen[1].body

    looker = django_user_model.objects.create_user("looker", is_staff=True)
    looker.user_permissions.add(*_permissions("view_webhookdelivery"))
    admin_client.force_login(looker)
    admin_client.post(url, again)
    assert not WebhookDelivery.objects.all().due().exists()
    looker.user_permissions.add(*_permissions("change_webhookdelivery"))
    admin_client.post(url, again)
    assert WebhookDelivery.objects.all().due().exists()


def _permissions(codename):
    from django.contrib.auth.models import Permission

    return Permission.objects.filter(codename=codename)


def test_the_metrics_count_attempts_and_what_was_delivered(failed, hook, api):
    def told(name):
        lines = api.get("/metrics").content.decode().splitlines()
        return [each.rpartition(" ")[2] for each in lines if each.startswith(f"ollama_batch_server_{name}_total ")]

    assert told("webhook_attempts") == told("webhooks_delivered") == ["0.0"]
    hook.answers = [Answer(503)]
    send_due()
    assert (told("webhook_attempts"), told("webhooks_delivered")) == (["1.0"], ["0.0"])
    send_again_now()
    assert (told("webhook_attempts"), told("webhooks_delivered")) == (["2.0"], ["1.0"])
    WebhookDelivery.objects.all().delete()  # as old ones are
    assert (told("webhook_attempts"), told("webhooks_delivered")) == (["2.0"], ["1.0"])


def test_the_metrics_tell_how_many_wait(failed, hook, api):
    assert "ollama_batch_server_webhooks_waiting 1.0" in api.get("/metrics").content.decode()
    send_due()
    assert "ollama_batch_server_webhooks_waiting 0.0" in api.get("/metrics").content.decode()


# Settings


def configured(**environment):
    return subprocess.run(
        [sys.executable, "-c", "from batchserver import settings as s; print(s.WEBHOOK_URL)"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.usefixtures("processes")
def test_the_address_is_used_as_it_was_typed():
    result = configured(WEBHOOK_URL="https://example.org/hook/", WEBHOOK_SECRET=SECRET)
    assert (result.returncode, result.stdout) == (0, "https://example.org/hook/\n")


@pytest.mark.parametrize("secret", ["hunter2hunter2", "whsec_hunter2", f"{SECRET[6:]}", "whsec_" + "hunter2ü" * 8])
@pytest.mark.usefixtures("processes")
def test_a_bad_secret_is_refused_and_not_shown(secret):
    result = configured(WEBHOOK_URL="https://example.org/hook", WEBHOOK_SECRET=secret)
    assert result.returncode != 0
    assert "WEBHOOK_SECRET: expected whsec_ and at least 24 bytes in base64; make one with: echo" in result.stderr
    assert secret not in result.stderr
    assert "hunter2" not in result.stderr


# A whole server


def test_a_slow_target_holds_up_no_batch(stack, fake, receiver):
    receiver.open.clear()
    server = stack(OLLAMA_BASE_URL=fake.url, WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET)
    client = client_of(server)
    first = finish(client, submit(client, [line("a")]).id)
    eventually(lambda: receiver.seen, what="the first event")

    second = finish(client, submit(client, [line("b")]).id)
    third = finish(client, submit(client, [line("c", method="GET")]).id)
    assert (second.status, third.status) == ("completed", "failed")
    assert len(receiver.seen) == 1  # all this time the first event has had no answer

    receiver.open.set()
    eventually(lambda: len(receiver.seen) == 3, what="the other events")
    assert [(event["type"], event["data"]["id"]) for event in receiver.events()] == [
        ("batch.completed", first.id),
        ("batch.completed", second.id),
        ("batch.failed", third.id),
    ]
    assert {unwrap(request).object for request in receiver.seen} == {"event"}
    eventually(lambda: server.log.read_text().count("was delivered") == 3, what="word of the last")
    assert SECRET[6:] not in server.log.read_text()


# Owners


OWNERS_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()


@pytest.fixture
def of_owner(receiver, settings, transactional_db):
    """A receiver of the first owner's own, beside none for all."""
    settings.OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES = True
    Owner.objects.first_one()
    Owner.objects.update(webhook_url=receiver.url, webhook_secret=OWNERS_SECRET)
    return receiver


def fail(create, work):
    batch = create([line("a", method="GET")])["id"]
    work.validate(batch)
    return batch


def test_an_owner_is_told_at_an_address_of_its_own(of_owner, create, work):
    batch = fail(create, work)
    send_due()
    (request,) = of_owner.seen
    event = unwrap(request, OWNERS_SECRET)
    assert (event.type, event.data.id) == ("batch.failed", batch)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(request)


def test_another_owners_address_is_told_nothing(of_owner, create, work):
    batch = create([line("a", method="GET")])["id"]
    Batch.objects.update(owner=Owner.objects.create(name="Bob"))
    work.validate(batch)
    send_due()
    assert of_owner.seen == []


def test_the_address_for_all_is_told_too(of_owner, create, work, settings):
    with Receiver() as all_of_them:
        settings.WEBHOOK_URL, settings.WEBHOOK_SECRET = all_of_them.url, SECRET
        batch = fail(create, work)
        send_due()
        assert unwrap(all_of_them.seen[0]).data.id == batch
    assert unwrap(of_owner.seen[0], OWNERS_SECRET).data.id == batch
    assert len({delivery.pk for delivery in WebhookDelivery.objects.all()}) == 2


def test_an_owner_is_warned_too(of_owner, create, work, settings):
    settings.WEBHOOK_WARNINGS = True
    batch = create([line("a")])["id"]
    webhooks.warn(batch, "window_too_short", about="today")
    webhooks.warn(batch, "window_too_short", about="today")
    send_due()
    assert [event["type"] for event in of_owner.events()] == ["batch.warning"]


def test_a_target_that_hangs_holds_up_its_own_events_alone(of_owner, create, work, settings):
    of_owner.open.clear()
    with Receiver() as all_of_them:
        settings.WEBHOOK_URL, settings.WEBHOOK_SECRET = all_of_them.url, SECRET
        batches = [fail(create, work) for _ in range(3)]
        webhooks.deliver_due()
        eventually(lambda: len(all_of_them.seen) == 3, what="the events for the address of all")
        eventually(lambda: of_owner.seen, what="the first event for the owner's")
        eventually(lambda: len(senders()) == 1, what="the end of the thread for the address of all")
        webhooks.deliver_due()  # no second thread for the owner's
        assert len(of_owner.seen) == len(senders()) == 1
        of_owner.open.set()
        eventually(lambda: not senders(), what="the end of the threads")
    assert {event["data"]["id"] for event in of_owner.events()} == set(batches)


def test_who_does_not_take_an_event_lets_go_of_its_place(of_owner, create, work):
    fail(create, work)
    fail(create, work)
    of_owner.answers = [Answer(500), Answer(500)]
    webhooks.send_due(Owner.FIRST)
    assert len(of_owner.seen) == 1
    webhooks.send_due(Owner.FIRST)
    assert len(of_owner.seen) == 2


def test_no_more_addresses_are_told_at_once_than_may_be(of_owner, create, work, monkeypatch):
    monkeypatch.setattr(webhooks, "MOST_AT_ONCE", 2)
    of_owner.open.clear()
    for number in range(3):
        batch = fail(create, work)
        owner = Owner.objects.create(name=f"{number}", webhook_url=of_owner.url, webhook_secret=OWNERS_SECRET)
        Batch.objects.filter(pk=batch).update(owner=owner)
    for _ in range(2):
        webhooks.deliver_due()
        eventually(lambda: len(of_owner.seen) == 2, what="two events")
    assert len(senders()) == 2
    of_owner.open.set()
    eventually(lambda: not senders(), what="the end of the threads")
    webhooks.deliver_due()
    eventually(lambda: len(of_owner.seen) == 3, what="the third")
    eventually(lambda: not senders(), what="the end of the thread")


def test_an_address_that_is_gone_ends_its_events(of_owner, create, work):
    fail(create, work)
    Owner.objects.update(webhook_url="")
    send_due()
    delivery = WebhookDelivery.objects.get()
    assert (delivery.next_at, delivery.last_error) == (None, "its owner has no address any more; given up")
    assert of_owner.seen == []


def test_an_owners_address_on_this_machine_is_not_connected_to(of_owner, create, work, settings):
    settings.OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES = False
    fail(create, work)
    send_due()
    delivery = WebhookDelivery.objects.get()
    assert "none of the internet (OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES)" in delivery.last_error
    assert of_owner.seen == []
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRET = of_owner.url, SECRET  # the operator's own is trusted
    fail(create, work)
    send_due()
    assert len(of_owner.seen) == 1


def test_a_redirect_leads_nowhere(of_owner, create, work):
    with Receiver() as inside:
        of_owner.answers.append(Answer(302, {"Location": inside.url}))
        fail(create, work)
        send_due()
        assert inside.seen == []
    assert WebhookDelivery.objects.get().last_error == "HTTP 302"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "10.1.2.3"),
        *("172.16.0.1", "192.168.1.7", "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1"),
        *("255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "2002:7f00:1::"),
        *("2001:0:4136:e378:8000:63bf:80ff:fffe", "::127.0.0.1", "::8.8.8.8", "fec0::1", "::ffff:0:127.0.0.1"),
        *("64:ff9b:1::7f00:1", "3fff::1", "5f00::1", "4000::1", "fe00::1", "ff0e::1"),
    ],
)
def test_no_address_but_one_of_the_internet_will_do(host):
    with pytest.raises(NotPublic):
        public_addresses(host, 80)


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_those_of_the_internet_will(host):
    assert public_addresses(host, 443) == [host]


def test_of_several_addresses_each_has_to_be_one(monkeypatch):
    def both(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(NotPublic):
        public_addresses("two.example", 80)


def test_what_was_checked_is_what_is_connected_to(receiver):
    """The name could stand for another address a moment later."""
    connected = []
    pool = watched_pools(connected.append, addresses=["127.0.0.1"])["http"]
    port = receiver.server.server_address[1]
    answer = pool("no-such-name.invalid", port).request("POST", "/", body=b"{}", retries=False)
    assert (answer.status, receiver.seen[0].headers["Host"]) == (200, f"no-such-name.invalid:{port}")
    assert connected[0].getpeername()[0] == "127.0.0.1"


def test_of_several_addresses_the_first_that_can_be_reached_is_connected_to(receiver):
    pool = watched_pools(lambda _: None, addresses=["127.0.0.2", "127.0.0.1"])["http"]
    port = receiver.server.server_address[1]
    assert pool("no-such-name.invalid", port).request("POST", "/", body=b"{}", retries=False).status == 200
    nowhere = watched_pools(lambda _: None, addresses=["127.0.0.2", "127.0.0.3"])["http"]
    with pytest.raises(NewConnectionError):
        nowhere("no-such-name.invalid", port).request("POST", "/", body=b"{}", retries=False)
