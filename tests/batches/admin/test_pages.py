"""The admin's pages: what they show to whom, and what can be done there."""

import html
import json
import re
import shutil
import subprocess
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from batches.admin.actions import ACTIONS, suiting
from batches.models import Backend, Batch, Line, Priority, Status
from batches.scheduling import switch
from batches.status import reasons
from common.models import Owner
from files_api.models import File
from tests.conftest import line, needs
from tests.fake_backend import Action
from tests.stack import ROOT

EVIL = '<script>alert("x")</script>{{ 7 }}'
LIST = "/admin/batches/batch/"


def text(answer):
    """What a person reads, in one line."""
    page = re.sub(r"<(script|style).*?</\1>", " ", answer.content.decode(), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


def page_of(batch_id, *more):
    return "/".join([f"{LIST}{quote(batch_id)}", *(more or ["change"])]) + "/"


@pytest.fixture
def looker(db):
    """Staff who may look at everything and change nothing."""
    user = User.objects.create_user("looker", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    browser = Client()
    browser.force_login(user)
    return browser


@pytest.fixture
def running(create, work, backend, live_backend):
    """A batch of which two lines are answered, one failed, and one waits."""
    backend.always("bad", Action(status=400, body={"error": {"message": EVIL, "code": "no_such_thing"}}))
    batch = create([line("a"), line(EVIL), line("bad"), line("z")])["id"]
    work.validate(batch)
    Line.objects.filter(custom_id="z").update(not_before=timezone.now() + timedelta(minutes=5))
    work.drive()
    return Batch.objects.get()


def test_the_first_page_tells_what_runs(admin_client, running, sent):
    page = text(admin_client.get("/admin/"))
    assert "in.jsonl" in page
    assert "3 of 4 lines" in page
    assert "1 failed" in page
    assert "What waits, in this order" in page
    assert "Disk left" in page
    assert "Pause all batches" in page
    moving = text(admin_client.get(f"{LIST}now/"))
    assert "3 of 4 lines" in moving
    assert "What waits" in moving


def test_what_failed_is_red_in_the_light_and_in_the_dark(admin_client, running):
    page = admin_client.get("/admin/").content.decode()
    [classes] = re.findall(r'class="([^"]*)"\s+title="Failed: 25.0%"', page)
    assert {"bg-red-600", "dark:bg-red-500"} <= set(classes.split())


@pytest.mark.parametrize("digits", ["26", "40", "3f", "ab"])
def test_the_address_of_a_batch_may_have_its_id_as_the_api_tells_it(admin_client, create, monkeypatch, digits):
    """Django takes `_26` for a quoted character: with two digits of a hundred, a page was missing."""
    monkeypatch.setattr("common.ids.secrets.token_hex", lambda size: (digits * size)[: 2 * size])
    batch = create([line("a")])["id"]
    assert batch.startswith(f"batch_{digits}")
    for address in (f"{LIST}{batch}/", f"{LIST}{quote(batch)}/"):
        for page in ("change/", "moves/", "download/input/"):
            answer = admin_client.get(address + page)
            assert answer.status_code == 200, address + page
            answer.getvalue()


def test_the_first_page_of_a_server_without_work(admin_client, live_backend):
    assert "Nothing to do." in text(admin_client.get("/admin/"))


def test_each_page_is_there_and_tells_what_is_wrong(admin_client, running):
    """Without a worker, on every page: lists and pages of rows."""
    pages = [reverse("admin:index"), page_of(running.pk), f"/admin/batches/line/{Line.objects.first().pk}/change/"]
    for model in admin.site._registry:
        pages.append(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"))
    pages += [
        reverse("admin:auth_user_add"),
        reverse("admin:files_api_file_change", args=[quote(File.objects.first().pk)]),
    ]
    Backend.objects.update(worker_seen_at=timezone.now() - timedelta(hours=1))
    for page in pages:
        answer = admin_client.get(page)
        assert answer.status_code == 200, page
        assert "No inference worker has reported lately." in text(answer), page


def test_batches_that_run_stand_above_those_that_are_over(admin_client, create, work, backend, live_backend):
    over = work.run(create([line("a")])["id"])["id"]
    runs = create([line("b")])["id"]
    work.validate(runs)
    Batch.objects.filter(pk=runs).update(created_at=timezone.now() - timedelta(days=1))
    page = text(admin_client.get(LIST))
    assert page.index(runs) < page.index(over)
    assert "in.jsonl" in page
    assert "Completed" in page
    moves = text(admin_client.get(f"{LIST}moves/?id={runs}&id={over}&id=none"))
    assert "0 of 1" in moves
    assert "1 of 1" in moves


def test_a_list_tells_whose_a_batch_is_if_it_is_not_the_first_owners(admin_client, running):
    assert "default" not in text(admin_client.get(LIST)).partition("in.jsonl")[2]
    Batch.objects.update(owner=Owner.objects.create(name="Ann <b>"))
    assert "Ann <b>" in text(admin_client.get(LIST)).partition("in.jsonl")[2]
    assert "Ann <b>" in text(admin_client.get(page_of(running.pk)))


def test_a_window_that_will_be_missed_is_red(admin_client, running):
    warning = {"code": "window_too_short", "message": "It ends too soon."}
    Batch.objects.update(warnings=[warning])
    assert re.search(r"text-red-600[^>]*>\s*\d+\s+hours", admin_client.get(LIST).content.decode().replace("\xa0", " "))


def test_the_page_of_a_batch(admin_client, running):
    page = text(admin_client.get(page_of(running.pk)))
    for words in ("in.jsonl", "75 %", "1 × no_such_thing", "Answers so far", "Errors so far", "Timeline", "Cancel"):
        assert words in page, words
    assert "1 × no_such_thing" in text(admin_client.get(page_of(running.pk, "moves")))
    answers = text(admin_client.get(page_of(running.pk, "answers")))
    assert "Line 1: a" in answers
    assert "no_such_thing" in answers


def test_nothing_of_a_prompt_or_an_answer_is_executed(admin_client, running):
    evil = Line.objects.get(custom_id=EVIL)
    for page in (
        *("/admin/", LIST, page_of(running.pk), page_of(running.pk, "answers"), "/admin/batches/line/"),
        *(f"/admin/batches/line/{each.pk}/change/" for each in Line.objects.all()),
        f"/admin/batches/line/?custom_id={EVIL}",
    ):
        answer = admin_client.get(page)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.content.decode()
    assert EVIL in text(admin_client.get(f"/admin/batches/line/{evil.pk}/change/"))


# What is done there


def test_who_may_only_look_can_do_nothing(looker, running):
    before = Batch.objects.values().get()
    page = looker.get(page_of(running.pk))
    assert page.status_code == 200
    assert "/do/" not in page.content.decode()
    for name in ACTIONS:
        assert looker.post(page_of(running.pk, "do", name)).status_code == 403
        assert looker.get(page_of(running.pk, "do", name)).status_code == 403
    for name in ("cancel", "pause"):
        looker.post(LIST, {"action": name, "_selected_action": [running.pk], "yes": "1"})
    assert Batch.objects.values().get() == before


def test_a_button_needs_a_post_and_a_token(admin_user, running):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    for name, action in ACTIONS.items():
        assert browser.get(page_of(running.pk, "do", name)).status_code == (200 if action.asks else 404)
        assert browser.post(page_of(running.pk, "do", name)).status_code == 403
    assert browser.post(page_of(running.pk, "do", "nothing")).status_code == 403
    assert Batch.objects.get().status == Status.IN_PROGRESS


def test_buttons_of_a_batch(admin_client, running, sent):
    def do(name):
        answer = admin_client.post(page_of(running.pk, "do", name), follow=True)
        assert answer.status_code == 200
        return text(answer)

    assert f"Paused {running.pk}." in do("pause")
    assert switch.is_paused(Batch.objects.get())
    assert f"Resumed {running.pk}." in do("resume")
    assert ("drive",) in sent
    assert f"{running.pk} has high priority." in do("high_priority")
    assert Batch.objects.get().priority == Priority.HIGH
    assert "has low priority." in do("low_priority")
    assert "has normal priority." in do("normal_priority")
    assert f"Extended {running.pk}." in do("extend")
    assert Batch.objects.get().expires_at > timezone.now() + timedelta(days=6)
    assert "Extended" in do("extend_longest")
    assert Batch.objects.get().expires_at > timezone.now() + timedelta(days=29)
    assert "is longer than 7 days from now. It stays as it is." in do("extend")
    assert Batch.objects.get().expires_at > timezone.now() + timedelta(days=29)
    assert "was not paused." in do("resume")
    assert "does not wait for another try." in do("try_again")
    assert f"{running.pk} was paused before." in (do("pause") and do("pause"))
    assert "Cannot retry a batch with status 'in_progress'." in do("retry")
    assert f"Cancelling {running.pk}." in do("cancel")
    assert f"{running.pk} was cancelled before." in do("cancel")
    Batch.objects.update(status=Status.CANCELLED)
    assert f"{running.pk} was cancelled before." in do("cancel")
    assert admin_client.post(page_of(running.pk, "do", "explode")).status_code == 404
    assert admin_client.post(page_of("batch_none", "do", "pause")).status_code == 404


@pytest.mark.parametrize(
    ("left", "offered"),
    [
        (timedelta(hours=-1), {"extend", "extend_longest"}),
        (timedelta(days=1), {"extend", "extend_longest"}),
        (timedelta(days=7), {"extend_longest"}),
        (timedelta(days=8), {"extend_longest"}),
        (timedelta(days=30), set()),
        (timedelta(days=31), set()),
    ],
)
def test_an_extension_that_is_none_is_not_offered(left, offered):
    batch = Batch(status=Status.IN_PROGRESS, expires_at=timezone.now() + left)
    assert {each.name for each in suiting(batch) if each.name.startswith("extend")} == offered
    batch.status = Status.COMPLETED
    assert not any(each.name.startswith("extend") for each in suiting(batch))


def test_cancel_asks_first(admin_client, running, sent):
    page = admin_client.get(page_of(running.pk, "do", "cancel"))
    assert "3 of 4 lines are finished, and stay. 1 are not asked any more." in text(page)
    assert Batch.objects.get().status == Status.IN_PROGRESS
    answer = admin_client.post(page_of(running.pk, "do", "cancel"), {"yes": "1"}, follow=True)
    assert f"Cancelling {running.pk}." in text(answer)
    assert Batch.objects.get().status == Status.CANCELLING


def test_the_list_asks_before_it_cancels(admin_client, running, sent):
    chosen = {"action": "cancel", "_selected_action": [running.pk]}
    page = text(admin_client.post(LIST, chosen))
    assert "3 of 4 lines are finished" in page
    assert Batch.objects.get().status == Status.IN_PROGRESS
    assert f"Cancelling {running.pk}." in text(admin_client.post(LIST, chosen | {"yes": "1"}, follow=True))
    assert Batch.objects.get().status == Status.CANCELLING


# Downloads


def test_downloads_while_it_runs_and_after_its_end(admin_client, running, work, sent):
    def get(kind):
        answer = admin_client.get(page_of(running.pk, "download", kind))
        assert answer.status_code == 200
        assert answer["Content-Disposition"].startswith("attachment;")
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Content-Type"] == "application/octet-stream"
        return answer.getvalue().decode().splitlines()

    assert len(get("input")) == 4
    assert len(get("output")) == 2
    assert len(get("errors")) == 1
    Line.objects.update(not_before=None)
    work.run(running.pk)
    assert Batch.objects.get().status == Status.COMPLETED
    assert len(get("output")) == 3
    assert len(get("errors")) == 1
    assert "Answers" in text(admin_client.get(page_of(running.pk)))
    for file in File.objects.all():
        file.hide()
    assert "/download/" not in admin_client.get(page_of(running.pk)).content.decode()
    for kind in ("input", "output", "errors", "secrets"):
        answer = admin_client.get(page_of(running.pk, "download", kind))
        assert answer.status_code == 404
        assert ("This file is deleted." in text(answer)) is (kind != "secrets")


def test_a_download_needs_the_permission_to_look_at_files(looker, running):
    assert len(looker.get(page_of(running.pk, "download", "input")).getvalue().splitlines()) == 4
    assert "/download/" in looker.get(page_of(running.pk)).content.decode()
    User.objects.get(username="looker").user_permissions.remove(Permission.objects.get(codename="view_file"))
    assert "/download/" not in looker.get(page_of(running.pk)).content.decode()
    assert looker.get(page_of(running.pk, "download", "input")).status_code == 403


# Who is not there


@pytest.mark.parametrize("part", ["now", "banner", "moves"])
def test_a_part_for_somebody_who_was_logged_out_loads_the_whole_page(client, running, part):
    answer = client.get(f"{LIST}{part}/", headers={"HX-Request": "true"})
    assert (answer.status_code, answer["HX-Refresh"]) == (204, "true")
    answer = client.get(f"{LIST}{part}/")
    assert (answer.status_code, answer.content) == (302, b"")
    assert b"worker" not in client.get("/admin/login/").content


def test_staff_without_permissions_see_no_batch(running):
    browser = Client()
    browser.force_login(User.objects.create_user("nobody", is_staff=True))
    assert "You may not look at batches." in text(browser.get("/admin/"))
    assert "in.jsonl" not in text(browser.get("/admin/"))
    line_ = Line.objects.first()
    for page in (
        *(f"{LIST}now/", f"{LIST}moves/", LIST, page_of(running.pk), page_of(running.pk, "moves")),
        *(page_of(running.pk, "answers"), page_of(running.pk, "download", "input")),
        *("/admin/batches/line/", f"/admin/batches/line/{line_.pk}/change/"),
    ):
        assert browser.get(page).status_code == 403, page


# Lines


def test_lines_are_found_and_read(admin_client, running, work):
    other = create_line(running)
    lines = "/admin/batches/line/"
    page = text(admin_client.get(f"{lines}?batch={running.pk}&custom_id=bad"))
    assert "no_such_thing" in page
    assert "Search in all batches" in page
    assert other.batch_id in text(admin_client.get(f"{lines}?custom_id=bad"))
    assert "No data" in text(admin_client.get(f"{lines}?custom_id=ba"))
    assert "No data" not in text(admin_client.get(f"{lines}?batch={running.pk}&state=failed"))
    assert "No data" in text(admin_client.get(f"{lines}?batch={running.pk}&state=expired"))
    assert "No data" in text(admin_client.get(f"{lines}?batch={running.pk}&reason=other"))
    for odd in ("state=nonsense", "after=x", "before=99999999999999999999", "batch=x", "custom_id=%20", "after=-1"):
        assert admin_client.get(f"{lines}?{odd}").status_code == 200


def test_a_page_of_lines_counts_none_and_a_poll_counts_once_a_minute(admin_client, running, monkeypatch):
    """The reasons to choose from are those that the counts have."""
    b = Line.objects.get(custom_id="a")
    for state, code in ((5, ""), (4, ""), (3, ""), (3, "zz"), (3, "b")):
        number = Line.objects.count() + 1
        Line.objects.create(batch=running, part=b.part, number=number, custom_id=f"{number}", offset=0, length=1)
        Line.objects.filter(number=number).update(state=state, error_code=code)
    assert reasons.codes(running) == sorted(each.code for each in reasons.of(running))
    assert {"b", "zz", "unknown", "no_such_thing"} < set(reasons.codes(running))
    counted = []
    count = reasons.of
    monkeypatch.setattr(reasons, "of", lambda batch: counted.append(batch.pk) or count(batch))
    assert admin_client.get(f"/admin/batches/line/?batch={running.pk}").status_code == 200
    assert counted == []
    monkeypatch.setattr(reasons, "MANY", 1)
    for _ in range(3):
        assert "1 × no_such_thing" in text(admin_client.get(page_of(running.pk, "moves")))
    assert len(counted) == 1


AWAY, GONE, REFUSED = "The server does not answer.", "What this page shows is deleted.", "You may not look at this"
PAGE = """
const heard = {}, note = {}, stale = {hidden: true, querySelector: () => note};
globalThis.document = {addEventListener: (name, act) => (heard[name] = act), getElementById: () => stale};
require(process.argv[1]);
const told = JSON.parse(process.argv[2]).map(([name, status, id]) => {
  heard[`htmx:${name}`]({detail: {xhr: {status}, target: {id}}});
  if (name === "responseError") heard["htmx:afterOnLoad"]({detail: {xhr: {status}, target: {id}}});
  return stale.hidden ? "" : note.textContent;
});
console.log(JSON.stringify(told));
"""


def test_a_part_that_cannot_be_loaded_says_why(processes):
    """What the page says after each answer, in a row."""
    node = shutil.which("node")
    needs(node, "node on the PATH")
    answers = [
        *(
            ("responseError", 404, "moves", GONE),
            ("afterOnLoad", 200, "banner", GONE),
            ("afterOnLoad", 200, "moves", ""),
        ),
        *(
            ("responseError", 403, "moves", REFUSED),
            ("sendError", 0, "banner", AWAY),
            ("afterOnLoad", 200, "banner", ""),
        ),
        *(
            ("responseError", 503, "moves", AWAY),
            ("responseError", 400, "moves", AWAY),
            ("afterOnLoad", 204, "moves", ""),
        ),
    ]
    script = ROOT / "batches" / "static" / "batches" / "admin.js"
    given = json.dumps([each[:3] for each in answers])
    told = json.loads(subprocess.run([node, "-e", PAGE, script, given], capture_output=True, check=True).stdout)
    assert [(not text, text.startswith(each[3])) for text, each in zip(told, answers, strict=True)] == [
        (not each[3], True) for each in answers
    ]


def create_line(batch):
    """The same custom_id in another batch."""
    other = Batch.objects.create(input_file_id="x", endpoint="e", completion_window="7d", expires_at=timezone.now())
    part = other.parts.create(model="m")
    return Line.objects.create(batch=other, part=part, number=1, custom_id="bad", offset=0, length=1)


def test_a_line_leads_to_the_next_one(admin_client, running):
    first, second, *_ = Line.objects.order_by("number")
    address = f"/admin/batches/line/{first.pk}/change/"
    page = text(admin_client.get(address))
    assert "a" in page
    assert "As it is" in page
    assert admin_client.get(f"{address}?way=on")["Location"] == f"/admin/batches/line/{second.pk}/change/"
    kept = f"batch={running.pk}&state=failed"
    failed = Line.objects.get(custom_id="bad")
    answer = admin_client.get(f"/admin/batches/line/{failed.pk}/change/?way=on&{kept}", follow=True)
    assert "There is no further line." in text(answer)
    answer = admin_client.get(f"/admin/batches/line/{second.pk}/change/?way=back")
    assert answer["Location"] == address
    assert admin_client.get("/admin/batches/line/0/change/").status_code == 302


@pytest.mark.parametrize(
    ("address", "status"),
    [
        (page_of("batch_none", "moves"), 404),
        (page_of("batch_none", "answers"), 404),
        (page_of("batch_none", "download", "input"), 404),
        (page_of("batch_none", "do", "pause"), 404),
        ("/admin/nothing/", 404),
        ("/admin/batches/nothing/", 404),
        ("/admin/auth/user/", 403),
        ("/admin/batches/webhookdelivery/", 403),
        (f"{LIST}switch/", 403),
    ],
)
def test_what_is_refused_is_a_page_of_the_admin(db, address, status):
    browser = browser_of("view_batch", "view_line", "view_file")
    answer = browser.post(address) if "switch" in address else browser.get(address)
    assert answer.status_code == status
    assert answer["Content-Type"] == "text/html; charset=utf-8"
    assert "To the first page" in text(answer)
    assert "Batches" in text(answer)  # the way around


def test_outside_of_the_admin_what_is_refused_is_as_the_api_says_it(client, db):
    for address in ("/v1/nothing", "/nothing", "/adminnothing"):
        answer = client.get(address)
        assert (answer.status_code, answer["Content-Type"]) == (404, "application/json")
    assert "Batches" not in text(client.get("/admin/nothing/", follow=True))


@pytest.mark.parametrize(
    "address",
    [
        *(f"{LIST}a%00/{part}/" for part in ("moves", "answers", "change", "download/input", "do/cancel", "history")),
        *(f"/admin/batches/line/?{each}=a%00b" for each in ("custom_id", "batch", "reason", "state", "after", "%00")),
        *(f"{LIST}?{each}=a%00b" for each in ("q", "status__exact", "endpoint", "o", "p")),
        f"{LIST}moves/?id=x&id=%00",
        "/admin/batches/line/1%00/change/?way=on",
        *(f"/admin/{each}/a%00/change/" for each in ("auth/user", "auth/group", "files_api/file", "batches/backend")),
        *(f"/admin/{each}/?q=%00" for each in ("auth/user", "auth/group", "files_api/file", "batches/webhookdelivery")),
    ],
)
def test_a_nul_in_an_address_is_not_there(admin_client, address):
    assert admin_client.get(address).status_code == 404


def test_a_nul_in_a_form_is_not_there(admin_client, client, running):
    for form in ({"_selected_action": "a\0"}, {"_selected_action": [running.pk, "\0"]}, {"\0": "1"}):
        assert admin_client.post(LIST, {"action": "pause", "_selected_action": running.pk} | form).status_code == 404
    assert admin_client.post(page_of("a\0", "do", "pause")).status_code == 404
    assert client.post("/admin/login/", {"username": "a\0", "password": "b"}).status_code == 404
    assert not switch.is_paused(Batch.objects.get())


def browser_of(*permissions, name="somebody"):
    """Of staff with these permissions alone."""
    user, _ = User.objects.get_or_create(username=name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    browser = Client()
    browser.force_login(user)
    return browser


@pytest.mark.parametrize(
    ("permissions", "batches", "answers"),
    [
        ([], 403, 403),
        (["view_batch"], 200, 403),
        (["change_batch"], 200, 403),
        (["view_line"], 403, 403),
        (["view_batch", "view_line"], 200, 200),
        (["change_batch", "change_line"], 200, 200),
        (["add_batch", "delete_batch", "view_line"], 403, 403),
    ],
)
def test_one_rule_says_who_may_look(running, permissions, batches, answers):
    """The first page, its parts, the banner, the list and the page of a batch; answers need the lines as well."""
    browser = browser_of(*permissions)
    parts = (LIST, f"{LIST}now/", f"{LIST}moves/", f"{LIST}banner/", page_of(running.pk), page_of(running.pk, "moves"))
    assert {browser.get(part).status_code for part in parts} == {batches}
    assert ("You may not look at batches." in text(browser.get("/admin/"))) is (batches == 403)
    assert (f"{LIST}banner/" in browser.get("/admin/").content.decode()) is (batches == 200)
    assert f'href="{LIST}"'.encode() in browser.get("/admin/").content or batches == 403
    assert browser.get(page_of(running.pk, "answers")).status_code == answers
    if batches == 200:
        page = browser.get(page_of(running.pk))
        assert ("Last answers" in text(page)) is (answers == 200)
        assert (page_of(running.pk, "answers") in page.content.decode()) is (answers == 200)
        assert ("Look at the lines" in text(page)) is (answers == 200)
