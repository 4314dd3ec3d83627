"""Who may call: a key once there is one, and no page from elsewhere before."""

import pytest

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


def test_pages_of_our_own_and_named_ones_may(api, settings):
    settings.CSRF_TRUSTED_ORIGINS = ["https://chat.example.org"]
    for origin in ("http://testserver", "https://chat.example.org"):
        assert api.post("/v1/batches/resume", headers={"Origin": origin}).status_code == 200
