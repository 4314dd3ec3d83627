"""The official client runs a batch on a real model: SmolLM2 in llama.cpp, through the embedded backend."""

import json

from tests.conftest import custom_ids, line
from tests.whole_server import client_of, finish, lines_of, submit

QUESTIONS = {
    "france": "What is the capital of France?",
    "italy": "What is the capital of Italy?",
    "japan": "What is the capital of Japan?",
}


def ask(custom_id, **body):
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": QUESTIONS[custom_id]},
    ]
    return line(
        custom_id, body={"model": "gpt-4o-mini", "messages": messages, "max_tokens": 16, "temperature": 0} | body
    )


def test_real_answers_to_a_real_batch(stack):
    server = stack(BACKEND_URL="embedded")
    assert "EVERY model name is answered by smollm2:135m" in server.log.read_text()
    client = client_of(server)

    done = finish(client, submit(client, [ask(name) for name in QUESTIONS]).id)

    assert (done.status, done.model) == ("completed", "smollm2:135m")
    assert done.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
    assert done.error_file_id is None
    results = lines_of(client, done.output_file_id)
    assert custom_ids(results) == list(QUESTIONS)
    spent = 0
    for result in results:
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        body = result["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"].strip()
        assert body["choices"][0]["finish_reason"] in ("stop", "length")
        assert 1 <= body["usage"]["completion_tokens"] <= 16
        spent += body["usage"]["total_tokens"]
    assert done.usage.total_tokens == spent
    # Small as it is, this much it knows.
    assert "Paris" in results[0]["response"]["body"]["choices"][0]["message"]["content"]

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    shaped = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    lines = [
        ask("france", response_format=shaped, max_tokens=60),
        ask("japan", messages=[{"role": "user", "content": "word " * 6000}]),
    ]
    done = finish(client, submit(client, lines).id)
    assert done.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    (answer,) = lines_of(client, done.output_file_id)
    assert set(json.loads(answer["response"]["body"]["choices"][0]["message"]["content"])) == {"city"}
    (refusal,) = lines_of(client, done.error_file_id)
    assert refusal["custom_id"] == "japan"
    assert refusal["response"]["status_code"] == 400
    assert refusal["response"]["body"]["error"]["code"] == "context_length_exceeded"

    for endpoint, extra in (
        ("/v1/embeddings", {}),
        ("/v1/completions", {"max_tokens": 4}),
        ("/v1/responses", {"max_output_tokens": 4}),
    ):
        request = line("a", url=endpoint, body=extra)
        if "max_tokens" not in extra:
            del request["body"]["max_tokens"]
        lines = [request]
        done = finish(client, submit(client, lines, endpoint=endpoint).id)
        assert done.request_counts.completed == 1, lines_of(client, done.error_file_id)
        assert done.usage.input_tokens > 0
