"""What browsers are told, and what Django's own check of a deployment says of each set-up."""

import runpy

import pytest
from django.core import management
from django.core.management.base import SystemCheckError

from batchserver import installation

KEPT = ("SECURE_", "SESSION_", "CSRF_", "ALLOWED_HOSTS", "BEHIND_TLS", "IS_OPEN", "SILENCED_", "X_FRAME", "MIDDLEWARE")


def parts_of(policy):
    return {name: set(values) for name, *values in (part.split() for part in policy.split("; "))}


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/admin/login/", "/admin/", "/admin/nowhere/", "/admin/batches/batch/"])
def test_a_page_of_the_admin_loads_nothing_from_elsewhere_and_runs_no_script_in_it(client, admin_client, path):
    for who in (client, admin_client):
        answer = who.get(path)
        policy = parts_of(answer["Content-Security-Policy"])
        assert policy["default-src"] == policy["object-src"] == policy["base-uri"] == {"'none'"}
        assert policy["frame-ancestors"] == {"'none'"}
        assert policy["form-action"] == policy["connect-src"] == {"'self'"}
        assert policy["script-src"] == {"'self'", "'unsafe-eval'"}
        assert not [each for values in policy.values() for each in values if "http" in each or "*" in each]
        assert answer["X-Frame-Options"] == "DENY"
        assert "camera=()" in answer["Permissions-Policy"]
        if answer.status_code == 200:
            page = answer.content.decode()
            assert "<script>" not in page
            assert " onclick=" not in page


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/files/file-1/content", "/health", "/v1/openapi.json", "/nowhere", "/"]
)
def test_an_answer_that_is_no_page_loads_nothing(client, path):
    answer = client.get(path)
    assert parts_of(answer["Content-Security-Policy"])["default-src"] == {"'none'"}
    assert answer["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer["X-Content-Type-Options"] == "nosniff"


@pytest.fixture
def set_up(monkeypatch, settings):
    """Let the settings be those of this environment."""

    def apply(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        read = runpy.run_path(str(installation.ROOT / "batchserver" / "settings.py"))
        for name, value in read.items():
            if name.startswith(KEPT):
                setattr(settings, name, value)
        for name in ("SECURE_SSL_REDIRECT", "SECURE_HSTS_SECONDS", "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE"):
            setattr(settings, name, read.get(name, False))
        settings.SILENCED_SYSTEM_CHECKS = read.get("SILENCED_SYSTEM_CHECKS", [])

    return apply


COMPOSE = {"HOST": "0.0.0.0", "PUBLISHED_AT": "127.0.0.1"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "environment",
    [{}, {"BEHIND_TLS": "True"}, COMPOSE, COMPOSE | {"BEHIND_TLS": "True"}, {"HOST": "0.0.0.0", "BEHIND_TLS": "True"}],
    ids=["loopback", "behind TLS", "compose", "compose behind TLS", "TLS by a proxy on another machine"],
)
def test_the_check_of_a_deployment_is_clean(set_up, environment):
    set_up(**environment)
    management.call_command("check", deploy=True, fail_level="WARNING")


@pytest.mark.django_db
@pytest.mark.parametrize("environment", [{"HOST": "0.0.0.0"}, {"HOST": "192.0.2.7"}, COMPOSE | {"PUBLISHED_AT": "::"}])
def test_it_warns_where_other_machines_come_without_tls(set_up, environment):
    set_up(**environment)
    with pytest.raises(SystemCheckError, match=r"batchserver\.W002.*without TLS"):
        management.call_command("check", deploy=True, fail_level="WARNING")


def test_how_long_a_login_holds_is_a_setting(set_up, settings):
    assert settings.SESSION_COOKIE_AGE == 14 * 24 * 3600
    set_up(SESSION_HOURS="8")
    assert settings.SESSION_COOKIE_AGE == 8 * 3600
