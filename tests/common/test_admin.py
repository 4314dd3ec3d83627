"""Owners and API keys in the admin."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from common.models import ApiKey, Owner, Scope
from common.signing import is_secret
from tests.batches.admin.test_pages import text

KEYS, OWNERS = "/admin/batchserver/apikey/", "/admin/batchserver/owner/"


def staff(*permissions):
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    browser = Client()
    browser.force_login(user)
    return browser


def problems(answer):
    return answer.context["adminform"].form.errors


def test_a_key_is_made_and_shown_once(admin_client, api):
    ann = Owner.objects.create(name="Ann")
    form = {"name": "laptop", "owner": ann.pk, "for_batches": "on", "expires_at_0": "", "expires_at_1": ""}
    shown = admin_client.post(f"{KEYS}add/", form, follow=True)
    (secret,) = re.findall(r"sk-[\w-]{20,}", shown.content.decode())
    assert "It is shown this once" in text(shown)
    key = ApiKey.objects.get()
    assert (key.name, key.owner, key.scopes) == ("laptop", ann, [Scope.BATCHES])
    assert api.get("/v1/files", HTTP_AUTHORIZATION=f"Bearer {secret}").status_code == 200
    for path in (KEYS, f"{KEYS}{key.pk}/change/"):
        page = admin_client.get(path)
        assert secret not in page.content.decode()
        assert key.digest not in page.content.decode()
        assert all(each in text(page) for each in ("laptop", "Ann", "batches", key.hint))


def test_a_key_is_for_something(admin_client):
    answer = admin_client.post(f"{KEYS}add/", {"name": "laptop", "owner": 1})
    assert "choose a scope" in text(answer)
    assert not ApiKey.objects.exists()


def test_a_key_that_would_never_be_taken_is_not_made(admin_client):
    form = {"name": "laptop", "owner": 1, "for_batches": "on", "expires_at_0": "2020-01-01", "expires_at_1": "12:00"}
    assert list(problems(admin_client.post(f"{KEYS}add/", form))) == ["expires_at"]
    assert not ApiKey.objects.exists()


def test_the_live_keys_of_an_owner_are_counted(admin_client):
    ann = Owner.objects.create(name="Ann")
    for _ in range(3):
        ApiKey.objects.make("live", owner=ann, expires_at=timezone.now() + timedelta(days=1))
    ApiKey.objects.make("expired", owner=ann, expires_at=timezone.now() - timedelta(seconds=1))
    ApiKey.objects.make("revoked", owner=ann)[0].revoke()
    page = admin_client.get(f"{OWNERS}?q=Ann").context["cl"]
    assert [owner.live_keys for owner in page.result_list] == [3]


def test_a_key_is_not_changed_but_revoked(admin_client):
    key, _ = ApiKey.objects.make("laptop")
    assert admin_client.post(f"{KEYS}{key.pk}/change/", {"name": "other", "is_admin": "on"}).status_code == 403
    admin_client.post(KEYS, {"action": "revoke", "_selected_action": [key.pk]})
    key.refresh_from_db()
    assert (key.name, key.is_admin, key.revoked_at is None) == ("laptop", False, False)


@pytest.mark.parametrize("permissions", [(), ("view_apikey",), ("change_apikey",), ("view_owner", "change_owner")])
def test_who_may_not_make_keys_makes_none(db, permissions):
    browser = staff(*permissions)
    assert browser.get(f"{KEYS}add/").status_code == 403
    assert browser.post(f"{KEYS}add/", {"name": "x", "owner": 1}).status_code == 403
    assert not ApiKey.objects.exists()


def owner_form(**fields):
    names = ("stored_bytes", "active_batches", "open_lines", "requests_per_minute", "streams")
    limits = {f"max_{name}": "" for name in names}
    return {"name": "Ann", "webhook_url": "", "webhook_secret": ""} | limits | fields


def test_an_owner_is_made_with_its_limits_and_a_webhook(admin_client):
    address = "https://example.org/hook?key=1"
    admin_client.post(f"{OWNERS}add/", owner_form(max_streams="2", max_open_lines="0", webhook_url=address))
    ann = Owner.objects.get(name="Ann")
    assert (ann.limit("streams"), ann.limit("open_lines"), ann.max_open_lines) == (2, None, 0)
    assert (ann.webhook_url, is_secret(ann.webhook_secret)) == (address, True)
    assert "Ann" in text(admin_client.get(OWNERS))


def test_the_webhooks_secret_is_for_those_who_may_change_it(admin_client):
    ann = Owner.objects.create(name="Ann", webhook_url="https://example.org/hook?key=1", webhook_secret="whsec_secret")
    page = f"{OWNERS}{ann.pk}/change/"
    assert "whsec_secret" in admin_client.get(page).content.decode()
    shown = staff("view_owner").get(page)
    assert (shown.status_code, "Ann" in text(shown)) == (200, True)
    assert not [each for each in ("whsec_secret", "key=1") if each in shown.content.decode()]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "default"),
        *(("webhook_url", each) for each in ("example.org", "ftp://example.org", "http://", "http://[", "http://a:x/")),
        *(
            ("webhook_url", each)
            for each in ("http://a b/", "http://a/ b", "http://a\n.b/", "http://a:0/", "http://a:65536/")
        ),
        *(("webhook_secret", each) for each in ("secret", "whsec_short", "whsec_!" + "A" * 40)),
        *(("max_streams", each) for each in ("-1", "x")),
    ],
)
def test_what_an_owner_cannot_have_is_refused(admin_client, field, value):
    Owner.objects.first_one()
    answer = admin_client.post(f"{OWNERS}add/", owner_form(**{field: value}))
    assert list(problems(answer)) == [field]
    assert Owner.objects.count() == 1


def test_an_owner_is_changed_and_never_deleted(admin_client):
    ann = Owner.objects.create(name="Ann", requests_until=7)
    ApiKey.objects.make("laptop", owner=ann)
    assert admin_client.post(f"{OWNERS}{ann.pk}/change/", owner_form(name="Anna")).status_code == 302
    assert admin_client.post(f"{OWNERS}{ann.pk}/delete/", {"post": "yes"}).status_code == 403
    ann.refresh_from_db()
    assert (ann.name, ann.requests_until) == ("Anna", 7)
    assert admin_client.get(f"{OWNERS}?q=Ann").status_code == 200
