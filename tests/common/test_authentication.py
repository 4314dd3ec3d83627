"""Who may call: a key once there is one, and no page from elsewhere before."""

import sys

import pytest
from django.core import management

from common.models import ApiKey


def test_any_or_no_key_will_do_until_one_exists(api):
    assert api.get("/v1/files").status_code == 200
    assert api.get("/v1/files", HTTP_AUTHORIZATION="Bearer anything").status_code == 200


def test_once_a_key_exists_every_call_needs_one(api):
    key, secret = ApiKey.objects.make("laptop")

    missing = api.get("/v1/files")
    assert missing.status_code == 401
    assert missing.json()["error"]["message"] == "Missing bearer or basic authentication in header"
    wrong = api.get("/v1/files", HTTP_AUTHORIZATION="Bearer sk-wrong")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert api.get("/v1/files", HTTP_AUTHORIZATION=f"Bearer {secret}").status_code == 200
    assert secret not in str(vars(key))
    key.revoke()
    # Revoking the last key does not open the door again.
    assert api.get("/v1/files", HTTP_AUTHORIZATION=f"Bearer {secret}").status_code == 401
    assert api.get("/v1/files").status_code == 401


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://testserver.evil.example", "https://testserver"]
)
def test_a_page_elsewhere_can_do_nothing_while_no_key_is_needed(api, origin):
    """By a form that a browser sends for it, without asking first."""
    refused = api.post("/v1/batches/pause", headers={"Origin": origin})
    assert refused.status_code == 403
    assert f"pages at {origin}" in refused.json()["error"]["message"]
    assert api.get("/v1/batches", headers={"Origin": origin}).status_code == 200  # which it cannot read


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "nonsense", ""])
@pytest.mark.parametrize("path", ["/v1/batches/pause", "/v1/batches/batch_1/cancel", "/api/generate", "/v1/uploads"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_page_elsewhere_that_hides_its_origin_can_do_nothing_either(api, site, path, content_type):
    refused = api.generic("POST", path, b"{}", content_type=content_type, headers={"Sec-Fetch-Site": site})
    assert refused.status_code == 403
    assert "pages of other sites" in str(refused.json()["error"])


def test_what_a_page_of_another_site_may_ask_changes_nothing(api):
    """It can send a GET, and cannot read the answer: no answer says that it may."""
    for method in ("GET", "HEAD", "OPTIONS"):
        answer = api.generic(method, "/v1/batches/pause", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code in (404, 405)
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert api.delete("/v1/files/file-1", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_a_page_that_gives_itself_our_name_in_the_dns_is_refused(client, settings):
    settings.ALLOWED_HOSTS = settings.OWN_NAMES
    answer = client.get("/v1/files", HTTP_HOST="evil.example", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 400


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_pages_of_our_own_that_send_no_origin_may(api, site):
    assert api.post("/v1/batches/resume", headers={"Sec-Fetch-Site": site}).status_code == 200


ELSEWHERE = ["192.0.2.7", "10.0.0.1", "172.17.0.1", "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.7", "0.0.0.0", ""]
PROXIES = ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto", "X-Forwarded-Host"]
CALLS = [("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")]
CALLS += [("GET", "/api/tags"), ("POST", "/api/generate"), ("POST", "/v1/messages"), ("DELETE", "/v1/batches/batch_1")]


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_without_a_key_no_other_machine_is_answered(api, method, path, address):
    refused = api.generic(method, path, b"{}", content_type="application/json", REMOTE_ADDR=address)
    assert refused.status_code == 403
    assert all(word in str(refused.json()["error"]) for word in ("create_api_key", "ALLOW_ANONYMOUS=True", address))
    assert api.get("/v1/files", REMOTE_ADDR=address, HTTP_AUTHORIZATION="Bearer sk-any").status_code == 403


def test_it_is_refused_in_the_form_of_openai(api):
    refused = api.get("/v1/batches", REMOTE_ADDR="192.0.2.7").json()["error"]
    assert (refused["type"], refused["code"]) == ("invalid_request_error", "api_key_required")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("header", PROXIES)
def test_whoever_comes_through_a_proxy_is_no_caller_of_this_machine(api, address, header):
    assert api.get("/v1/files", REMOTE_ADDR=address).status_code == 200
    refused = api.get("/v1/files", REMOTE_ADDR=address, headers={header: "127.0.0.1"})
    assert refused.status_code == 403
    assert "through a proxy" in refused.json()["error"]["message"]


def test_behind_tls_all_come_through_the_proxy(api, settings):
    settings.BEHIND_TLS = True
    assert api.get("/v1/files").status_code == 403


def test_a_header_of_a_proxy_makes_nobody_a_caller_of_this_machine(api):
    headers = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Host": "127.0.0.1"}
    assert api.get("/v1/files", REMOTE_ADDR="192.0.2.7", headers=headers).status_code == 403


def test_the_first_key_opens_the_door_at_once_to_whom_has_it(api):
    assert api.get("/v1/files", REMOTE_ADDR="192.0.2.7").status_code == 403
    _, secret = ApiKey.objects.make("laptop")
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.get("/v1/files", REMOTE_ADDR="192.0.2.7", headers=headers).status_code == 200
    assert api.get("/v1/files", REMOTE_ADDR="192.0.2.7").status_code == 401


@pytest.mark.parametrize("switch", ["ALLOW_ANONYMOUS", "PUBLISHED_ON_LOOPBACK"])
def test_all_may_come_in_where_a_person_says_so_or_the_port_is_published_on_loopback(api, settings, switch):
    setattr(settings, switch, True)
    assert api.get("/v1/files", REMOTE_ADDR="172.18.0.1").status_code == 200
    proxied = api.get("/v1/files", REMOTE_ADDR="172.18.0.1", headers={"X-Forwarded-For": "192.0.2.7"})
    assert proxied.status_code == (200 if switch == "ALLOW_ANONYMOUS" else 403)
    assert api.post("/v1/batches/pause", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.django_db
def test_what_monitors_ask_stays_open(client):
    for path in ("/health", "/livez", "/metrics", "/admin/login/", "/v1/openapi.json"):
        assert client.get(path, REMOTE_ADDR="192.0.2.7").status_code in (200, 503), path


@pytest.mark.django_db
def test_the_start_says_who_may_call(settings, capsys):
    def told() -> str:
        management.call_command("setup")
        return capsys.readouterr().out

    assert "API key" not in told()
    settings.IS_OPEN_TO_OTHERS = True
    assert f"DATA_DIR={settings.DATA_DIR} {sys.executable} {settings.BASE_DIR}/manage.py create_api_key NAME" in told()
    settings.ALLOW_ANONYMOUS = True
    assert "Everybody who reaches this server" in told()
    ApiKey.objects.make("laptop")
    assert "Everybody" not in told()


def test_pages_of_our_own_and_named_ones_may(api, settings):
    settings.CSRF_TRUSTED_ORIGINS = ["https://chat.example.org"]
    for origin in ("http://testserver", "https://chat.example.org"):
        assert api.post("/v1/batches/resume", headers={"Origin": origin}).status_code == 200
