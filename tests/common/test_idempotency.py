"""Creates that are sent twice under one Idempotency-Key."""

from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from rest_framework.test import APIClient

from batches.models import Batch
from common.models import ApiKey, Owner, RememberedAnswer
from files_api.models import File
from tests.conftest import CHAT, at_once, line, several_connections

BODY = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}


def create_batch(api, key="k", **changes):
    return api.post("/v1/batches", BODY | changes, format="json", HTTP_IDEMPOTENCY_KEY=key)


def upload(api, content=b"{}\n", key="k"):
    form = {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)}
    return api.post("/v1/files", form, HTTP_IDEMPOTENCY_KEY=key)


def test_the_first_answer_is_given_again(api):
    first, second = create_batch(api), create_batch(api)
    assert first.json() == second.json()
    assert (first.status_code, second.status_code) == (200, 200)
    assert Batch.objects.count() == 1


def test_a_file_is_stored_once(api, settings):
    first, second = upload(api), upload(api)
    assert first.json() == second.json()
    assert len([path for path in settings.FILES_DIR.rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("send", [lambda api: create_batch(api, metadata={"a": "b"}), lambda api: upload(api, b"[]\n")])
def test_the_same_key_with_another_body_is_refused(api, send):
    create_batch(api)
    upload(api)
    answer = send(api)
    assert answer.status_code == 409
    assert answer["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "idempotency_key_reused"
    assert (Batch.objects.count(), File.objects.count()) == (1, 1)


def test_another_key_another_path_and_another_owner_are_other_requests(api):
    create_batch(api)
    create_batch(api, key="other")
    upload(api)
    _, secret = ApiKey.objects.make("laptop", owner=Owner.objects.create(name="Ann"))
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    create_batch(api)
    assert Batch.objects.count() == 3


def test_a_refused_request_leaves_no_key_behind(api):
    assert create_batch(api, endpoint="/v1/x").status_code == 400
    assert create_batch(api).status_code == 200


def test_a_key_is_forgotten_after_a_day(api):
    create_batch(api)
    RememberedAnswer.objects.update(created_at=timezone.now() - timedelta(hours=25))
    create_batch(api, metadata={"another": "body"})
    assert Batch.objects.count() == 2
    assert RememberedAnswer.objects.count() == 1


def test_a_key_that_is_too_long_is_refused(api):
    assert create_batch(api, key="k" * 256).json()["error"]["code"] == "string_above_max_length"


def test_without_a_key_nothing_is_remembered(api, create):
    create([line("a")])
    create([line("a")])
    assert Batch.objects.count() == 2
    assert not RememberedAnswer.objects.exists()


@several_connections
def test_of_two_at_once_one_creates_and_both_are_answered(transactional_db):
    answers = at_once(4, lambda: create_batch(APIClient()).json()["id"])
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert Batch.objects.count() == 1


@several_connections
def test_of_two_uploads_at_once_one_is_stored_and_both_are_answered(transactional_db, settings):
    answers = at_once(4, lambda: upload(APIClient()).json()["id"])
    assert set(answers) == {File.objects.get().pk}
    assert len(answers) == 4
    assert [path.name for path in settings.FILES_DIR.rglob("*") if path.is_file()] == answers[:1]
