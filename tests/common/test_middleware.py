"""What every response carries."""

import io
import logging
import re

import pytest
from django.test import Client

from tests.conftest import line


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/v1/files", "localhost"),
        ("/v1/nope", "localhost"),
        ("/v1/batches/batch_x", "localhost"),
        ("/health", "localhost"),
        ("/admin/login/", "localhost"),
        ("/v1/files", "evil.example"),
    ],
)
def test_every_response_has_them(db, path, host):
    answer = Client().get(path, headers={"host": host, "x-request-id": "req_mine"})
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer["x-request-id"])
    assert answer["openai-processing-ms"].isdigit()
    assert answer["openai-version"] == "2020-10-01"


def test_each_request_has_an_id_of_its_own(api):
    assert api.get("/v1/files")["x-request-id"] != api.get("/v1/files")["x-request-id"]


def test_the_id_is_in_the_log(api, create):
    (handler,) = (each for each in logging.getLogger().handlers if each.get_name() == "stderr")
    batch = create([line("a")])
    before, handler.stream = handler.stream, (log := io.StringIO())  # pytest may have closed the old one
    try:
        answer = api.post(f"/v1/batches/{batch['id']}/cancel")
    finally:
        handler.stream = before
    assert log.getvalue().endswith(f"{batch['id']}: cancelling [{answer['x-request-id']}]\n")
