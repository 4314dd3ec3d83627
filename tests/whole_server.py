"""A whole server by the official client: submit lines, wait for the end, read the results."""

import io
import json

import openai

from tests.conftest import CHAT, jsonl
from tests.stack import eventually

FINAL = ("completed", "failed", "expired", "cancelled")


def client_of(server):
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="any", _strict_response_validation=True, max_retries=10)


def submit(client, lines, **fields):
    file = client.files.create(file=("in.jsonl", io.BytesIO(jsonl(lines))), purpose="batch")
    request = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | fields
    return client.batches.create(**request)


def finish(client, batch_id, within_s=120):
    return eventually(
        lambda: (batch := client.batches.retrieve(batch_id)).status in FINAL and batch,
        within_s=within_s,
        what="the end of the batch",
    )


def lines_of(client, file_id):
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()] if file_id else []
