"""Keys: made, listed, revoked and expired by command; what a key is for; when it was last used."""

import re
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import InternalError, OperationalError, connection
from django.test import Client
from django.utils import timezone

from common.models import ApiKey, Owner, Scope


def run(command, *arguments):
    said = StringIO()
    call_command(command, *arguments, stdout=said)
    return said.getvalue().strip()


def get(api, secret, path="/v1/files"):
    return api.get(path, HTTP_AUTHORIZATION=f"Bearer {secret}")


def test_a_key_is_made_with_an_owner_scopes_and_an_end(api):
    secret = run("create_api_key", "laptop", "--owner", "Ann", "--scopes", "batches,admin", "--expires", "90d")
    key = ApiKey.objects.get()
    assert (key.name, key.owner.name, key.scopes) == ("laptop", "Ann", [Scope.BATCHES, Scope.ADMIN])
    assert key.expires_at == pytest.approx(timezone.now() + timedelta(days=90), abs=timedelta(minutes=1))
    assert get(api, secret).status_code == 200
    assert secret not in str(vars(key))


def test_without_options_a_key_is_the_first_owners_and_for_all_but_the_server(db):
    run("create_api_key", "laptop")
    run("create_api_key", "other", "--admin")
    plain, admin = ApiKey.objects.order_by("pk")
    assert (plain.owner_id, plain.scopes, plain.expires_at) == (Owner.FIRST, [Scope.BATCHES, Scope.CHAT], None)
    assert (admin.owner_id, admin.scopes) == (Owner.FIRST, list(Scope))


def test_a_person_may_have_several_keys(api):
    secrets = [run("create_api_key", name, "--owner", "Ann") for name in ("laptop", "phone")]
    assert [get(api, each).status_code for each in secrets] == [200, 200]
    assert Owner.objects.filter(name="Ann").count() == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--scopes", "all"),
        ("--scopes", ""),
        ("--scopes", "batches,x"),
        ("--expires", "90"),
        ("--expires", "0d"),
        ("--expires", "-1d"),
        ("--owner", ""),
        ("--owner", "  "),
        ("--owner", "A" * 101),
        ("--owner", "Ann\nroot"),
        ("--owner", "Ann\x00"),
    ],
)
def test_a_wrong_option_is_refused(db, options):
    with pytest.raises(CommandError, match="expected"):
        run("create_api_key", "laptop", f"{options[0]}={options[1]}")
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("name", ["", " ", "n" * 101, "two\nlines"])
def test_a_key_has_a_name(db, name):
    with pytest.raises(CommandError, match="expected a name of 1 to 100 characters"):
        run("create_api_key", name)
    assert not ApiKey.objects.exists()


def test_keys_are_listed_without_their_secrets(api):
    secret = run("create_api_key", "laptop", "--owner", "Ann", "--expires", "12h")
    run("create_api_key", "old")
    ApiKey.objects.get(name="old").revoke()
    get(api, secret)
    live, revoked = run("list_api_keys").splitlines()
    assert re.search(r"sk-.{4}…  laptop  Ann  batches,chat  made 20.*  used 20.*  live until 20", live)
    assert re.search(r"  old  default  batches,chat  made 20.*  used never  revoked 20", revoked)
    assert secret not in live


def test_a_revoked_key_is_not_taken_any_more(api):
    secret = run("create_api_key", "laptop")
    key = ApiKey.objects.get()
    assert run("revoke_api_key", str(key.pk)) == f"Revoked {key}."
    assert get(api, secret).status_code == 401
    with pytest.raises(CommandError, match="No API key with the id 4711"):
        run("revoke_api_key", "4711")


def test_an_expired_key_is_told_so_and_keeps_the_door_shut(api):
    secret = run("create_api_key", "laptop", "--expires", "1h")
    assert get(api, secret).status_code == 200
    ApiKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    refused = get(api, secret)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "'laptop' has expired" in refused.json()["error"]["message"]
    assert api.get("/v1/files").status_code == 401


def test_keys_of_the_version_before_have_the_scopes_that_they_had_rights_of(api):
    """They wrote no scopes; the columns' defaults say what such a key is for."""
    ApiKey.objects.make("new")
    fields = "name, digest, hint, is_admin, created_at"
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO batchserver_apikey ({fields}) SELECT 'old', 'digest', 'sk-x', is_admin, created_at "
            "FROM batchserver_apikey"
        )
    old = ApiKey.objects.get(name="old")
    assert (old.owner_id, old.scopes) == (Owner.FIRST, [Scope.BATCHES, Scope.CHAT])


def test_the_last_use_is_noted_once_a_minute(api):
    _, secret = ApiKey.objects.make("laptop")
    get(api, secret)
    first = ApiKey.objects.get().last_used_at
    assert first == pytest.approx(timezone.now(), abs=timedelta(minutes=1))
    get(api, secret)
    assert ApiKey.objects.get().last_used_at == first
    ApiKey.objects.update(last_used_at=first - timedelta(minutes=2))
    get(api, secret)
    assert ApiKey.objects.get().last_used_at > first


@pytest.mark.parametrize(
    "error", [OperationalError("database is locked"), InternalError("cannot execute UPDATE in a read-only transaction")]
)
def test_a_busy_database_keeps_no_key_out(api, monkeypatch, error):
    def busy(*args, **kwargs):
        raise error

    _, secret = ApiKey.objects.make("laptop")
    monkeypatch.setattr("django.db.models.query.QuerySet.update", busy)
    assert get(api, secret).status_code == 200


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres locks one row alone")
def test_no_request_waits_for_the_lock_to_note_the_use(api, monkeypatch):
    waits = []

    def wait():
        with connection.cursor() as cursor:
            return cursor.execute("PRAGMA busy_timeout").fetchone()[0]

    _, secret = ApiKey.objects.make("laptop")
    monkeypatch.setattr("django.db.models.query.QuerySet.update", lambda *_, **__: waits.append(wait()))
    get(api, secret)
    assert (waits, wait()) == ([0], 20_000)


def test_what_a_key_lacks_is_told(api):
    _, secret = ApiKey.objects.make("chat alone", scopes=[Scope.CHAT])
    refused = get(api, secret).json()["error"]
    assert refused["code"] == "missing_scope"
    assert "lacks the scope 'batches'" in refused["message"]
    assert "create_api_key NAME --scopes batches" in refused["message"]


def test_a_view_that_names_no_scope_is_for_no_key(api, monkeypatch):
    _, secret = ApiKey.objects.make("all", scopes=list(Scope))
    monkeypatch.delattr("files_api.views.FileViewSet.scopes")
    assert get(api, secret).status_code == 403


# /metrics


def figures(**headers):
    return Client().get("/metrics", headers=headers)


@pytest.fixture
def secrets(transactional_db):
    return {
        name: ApiKey.objects.make(name, scopes=scopes)[1]
        for name, scopes in {"admin": [Scope.ADMIN], "plain": [Scope.BATCHES, Scope.CHAT]}.items()
    }


def test_anybody_reads_the_figures_until_a_key_exists(transactional_db):
    assert figures().status_code == 200


def test_an_administrator_reads_them_from_then_on(secrets):
    assert figures().status_code == 401
    assert figures(Authorization=f"Bearer {secrets['plain']}").status_code == 403
    assert figures(Authorization="Bearer sk-wrong").status_code == 401
    assert figures(Authorization=f"Bearer {secrets['admin']}").status_code == 200
    assert ApiKey.objects.get(name="admin").last_used_at is not None
    ApiKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert figures(Authorization=f"Bearer {secrets['admin']}").status_code == 401


@pytest.mark.parametrize(("is_superuser", "status"), [(True, 200), (False, 401)])
def test_the_administrators_session_reads_them(secrets, is_superuser, status):
    browser = Client()
    browser.force_login(User.objects.create_user("admin", is_staff=True, is_superuser=is_superuser))
    assert browser.get("/metrics").status_code == status


def test_without_a_database_who_was_an_administrator_is_one(secrets, monkeypatch):
    def away(*_):
        raise OperationalError("away")

    key = {"Authorization": f"Bearer {secrets['admin']}"}
    assert figures(**key).status_code == 200
    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", away)
        assert figures(**key).status_code == 200
        assert figures().status_code == 401
