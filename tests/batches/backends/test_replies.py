"""What the replies of each kind of model server mean."""

import json
import re

import pytest

from batches import backends
from batches.backends.replies import Usage, Verdict
from tests.fake_backend import answer, error_body

CHAT = "/v1/chat/completions"


def judge(kind, status, body, endpoint=CHAT):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return backends.kind_named(kind).judge(endpoint, status, content)


# Ollama, vLLM, llama.cpp's router, LocalAI, llama-swap (now and once), LM Studio, LiteLLM, Triton, Xinference, others.
SAID_OF_A_MISSING_MODEL = """
    model 'x' not found | model "x" not found, try pulling it first | The model `x` does not exist. | no such model
    The model `x` does not exist or you do not have access to it. | model "x" not found. To see available models, call
    No such model: x | no such model 'x' | Unknown model: x | unknown model "x" | Invalid model: x | Model Not Exist
    no router for requested model | no local server found for requested model | no peer found for requested model
    local model x not found | could not find real modelID for x | peer model not found | llama-swap: no router for model
    Invalid model identifier "x". Please specify a valid downloaded model (e.g., y). | No models loaded. Load one
    Invalid model name passed in model=x. Call `/v1/models` | Request for unknown model: 'x' is not found
    Model not found in the model list, uid: x | Model not found, inaccessible | model name=x is not found
    No models are currently loaded. | Could not find model with id x | Cannot find model x | Unable to find model 'x'
    There is no model named x | No model named 'x' | error: model not found | Error: The requested model x is unknown
    No model or adapter found for x | Failed to find model x | Unsupported model x | no backend found for model x
    The specified model 'x' was not found | Can't find model x | "model 'x' not found" | NotFoundError: The model `x` is
    Model with name x does not exist. | This model is not available | 404: model not found | Model x is not loaded
"""
# A line chooses the id of a file, a response, a prompt or a tool.
SAID_OF_SOMETHING_ELSE = """
    Response with id 'resp_my_model_1' not found. | no such model.txt: model | Item 'model' not found | no such thing
    No such File object: no such model | LoRA adapter the-model does not exist | File 'unknown model' not found
    'my model' not found | x model not found | could not find tool model | Cannot find image of the model | no router
    Conversation with id 'model' not found | unknown tool 'model' | invalid file id: model | no such prompt: model
    Unknown conversation 'no such model' | no route for /v1/models/x | 'model' not found | model-card.pdf not found
"""


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        *((said, Verdict.MODEL_MISSING) for said in re.split(r"\s+\|\s+|\n\s+", SAID_OF_A_MISSING_MODEL.strip())),
        *((said, Verdict.REFUSED) for said in re.split(r"\s+\|\s+|\n\s+", SAID_OF_SOMETHING_ELSE.strip())),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "vllm", "llama-server"])
def test_a_missing_model_is_told_by_the_beginning_of_the_servers_own_words(kind, said, verdict):
    assert judge(kind, 404, {"error": {"message": said, "type": "not_found_error", "code": 404}}).verdict is verdict
    assert judge(kind, 404, {"error": said}).verdict is verdict


ASKED = {"model": "m", "input": "x", "prompt": "x", "messages": [{"content": "x"}]}


def swap_error(status, message):
    """As llama-swap writes it, with a code for each status."""
    code = {404: "not_found", 429: "concurrency_limit"}.get(status, "internal_error")
    return {"src": "llama-swap", "error": {"message": message, "type": "server_error", "param": None, "code": code}}


ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("kind", "status", "body", "endpoint", "verdict"),
    [
        ("ollama", 404, error_body("model 'x' not found"), CHAT, Verdict.MODEL_MISSING),
        (
            "ollama",
            404,
            error_body('model "x" not found, try pulling it first'),
            "/v1/embeddings",
            Verdict.MODEL_MISSING,
        ),
        # No word of the API: an old Ollama without this endpoint, or a wrong address.
        ("ollama", 404, b"404 page not found", "/v1/responses", Verdict.ENDPOINT_MISSING),
        ("vllm", 404, {"detail": "Not Found"}, "/v1/embeddings", Verdict.ENDPOINT_MISSING),
        ("llama-server", 404, error_body("File Not Found", "not_found_error"), CHAT, Verdict.ENDPOINT_MISSING),
        ("vllm", 404, error_body("no such thing"), CHAT, Verdict.REFUSED),
        (
            "vllm",
            500,
            error_body("EngineCore encountered an issue. See stack trace (above) for the root cause."),
            CHAT,
            Verdict.CRASHED,
        ),
        ("vllm", 500, error_body("bad: EngineCore encountered an issue"), CHAT, Verdict.FAILED),
        ("ollama", 400, error_body("embedding contains NaN or Inf"), "/v1/embeddings", Verdict.FAILED),
        ("ollama", 500, error_body("model requires more system memory"), CHAT, Verdict.UNLOADABLE),
        ("ollama", 500, error_body("llama-server process has terminated: signal: killed"), CHAT, Verdict.CRASHED),
        ("ollama", 500, {"error": "llama-server process has terminated"}, "/api/generate", Verdict.UNLOADABLE),
        ("ollama", 403, b"", CHAT, Verdict.MISCONFIGURED),
        ("ollama", 403, {"error": "cloud models are disabled"}, CHAT, Verdict.REFUSED),
        ("ollama", 401, {"error": "unauthorized"}, CHAT, Verdict.REFUSED),
        ("vllm", 401, error_body("Unauthorized"), CHAT, Verdict.MISCONFIGURED),
        ("ollama", 504, b"", CHAT, Verdict.FAILED),
        ("openai", 200, b'{"data": [1e999]}', "/v1/embeddings", Verdict.FAILED),
        ("ollama", 400, error_body("[] is too short - 'messages'"), CHAT, Verdict.REFUSED),
        ("ollama", 400, error_body("do embedding request: EOF"), "/v1/embeddings", Verdict.CRASHED),
        ("ollama", 400, error_body("do embedding request: EOF"), CHAT, Verdict.REFUSED),
        ("ollama", 500, error_body("model runner has unexpectedly stopped"), CHAT, Verdict.CRASHED),
        ("ollama", 500, error_body("template: nope"), CHAT, Verdict.FAILED),
        ("ollama", 501, error_body("This server does not support embeddings."), "/v1/embeddings", Verdict.REFUSED),
        ("ollama", 503, error_body("server busy, please try again.  maximum pending"), CHAT, Verdict.BUSY),
        ("ollama", 429, error_body("slow down"), CHAT, Verdict.BUSY),
        ("vllm", 404, error_body("The model `x` does not exist."), CHAT, Verdict.MODEL_MISSING),
        ("llama-server", 400, error_body("exceeds the available context size"), CHAT, Verdict.REFUSED),
        ("llama-server", 503, error_body("Loading model"), CHAT, Verdict.BUSY),
        (
            "openai",
            400,
            {"error": {"message": 'Invalid model identifier "x".', "param": "model", "code": "model_not_found"}},
            CHAT,
            Verdict.MODEL_MISSING,
        ),
        ("openai", 400, {"error": {"message": "no such model", "param": "model"}}, CHAT, Verdict.REFUSED),
        ("llama-router", 500, b"proxy error: Failed to read connection", CHAT, Verdict.CRASHED),
        ("llama-router", 500, b"bad: proxy error: Failed to read connection", CHAT, Verdict.FAILED),
        ("llama-router", 500, error_body("model name=m failed to load"), CHAT, Verdict.UNLOADABLE),
        ("llama-router", 400, error_body("model 'm' not found"), CHAT, Verdict.MODEL_MISSING),
        ("llama-router", 400, error_body("the model 'm' not found"), CHAT, Verdict.REFUSED),
        ("llama-swap", 502, b"", CHAT, Verdict.CRASHED),
        ("llama-swap", 502, swap_error(502, "peer proxy error: timeout"), CHAT, Verdict.BUSY),
        ("llama-swap", 502, b"unable to start process: upstream command exited prematurely", CHAT, Verdict.UNLOADABLE),
        ("llama-swap", 500, swap_error(500, "unspecific error: health check timed out"), CHAT, Verdict.UNLOADABLE),
        ("llama-swap", 500, swap_error(500, "unspecific error: invalid proxy URL"), CHAT, Verdict.UNLOADABLE),
        ("llama-swap", 500, swap_error(500, "unspecific error: [m] stopped"), CHAT, Verdict.BUSY),
        ("llama-swap", 500, swap_error(500, "unspecific error: group is shutting down"), CHAT, Verdict.BUSY),
        (
            "llama-swap",
            500,
            swap_error(500, "unspecific error: [m] could not be started in stopping state"),
            CHAT,
            Verdict.BUSY,
        ),
        ("llama-swap", 503, swap_error(503, "[m] process is not ready"), CHAT, Verdict.BUSY),
        ("llama-swap", 429, swap_error(429, "Too many requests"), CHAT, Verdict.BUSY),
        ("llama-swap", 404, swap_error(404, "no router for requested model"), CHAT, Verdict.MODEL_MISSING),
        ("llama-swap", 500, error_body("bad: unspecific error: [m] stopped"), CHAT, Verdict.FAILED),
        ("llama-swap", 500, error_body("EngineCore encountered an issue."), CHAT, Verdict.CRASHED),
        ("openai", 302, b"", CHAT, Verdict.MISCONFIGURED),
        ("openai", 200, b"", CHAT, Verdict.FAILED),
        # A runner that repeats itself is stopped without a final record: no finish_reason, or no tokens.
        ("ollama", 200, answer(CHAT, ASKED) | {"usage": ZERO}, CHAT, Verdict.FAILED),
        ("ollama", 200, answer("/v1/completions", ASKED) | {"usage": ZERO}, "/v1/completions", Verdict.FAILED),
        ("ollama", 200, answer("/v1/responses", ASKED) | {"usage": ZERO}, "/v1/responses", Verdict.FAILED),
    ],
)
def test_verdicts(kind, status, body, endpoint, verdict):
    reply = judge(kind, status, body, endpoint)
    assert reply.verdict is verdict
    if verdict is Verdict.MISCONFIGURED:
        assert reply.message


@pytest.mark.parametrize(
    "message",
    [
        "llama-server process no longer running: unknown",
        # The last line that a runner wrote may hold any words.
        "llama-server process no longer running: exit status 2 invalid input: it does not support embeddings",
        "unexpected server status: llm server error",
        "no slots available after 10 retries",
        "server not responding",
        "connection refused",
        'health resp: Get "http://127.0.0.1:36000/health": EOF',
        "read health response: unexpected EOF",
        "health unmarshal: unexpected end of JSON input",
        "unmarshal embedding response: unexpected end of JSON input",
        "unmarshal embedding values: json: cannot unmarshal object into Go value of type []float32",
        "empty embedding response",
        "error reading embed response: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer",
        'Post "http://127.0.0.1:36000/tokenize": EOF',
        'Post "http://127.0.0.1:36000/detokenize": dial tcp 127.0.0.1:36000: connect: connection refused',
        'do embedding request: Post "http://127.0.0.1:36489/v1/embeddings": context deadline exceeded',
        "context canceled",
        "GGML_ASSERT(n_tokens <= n_batch) failed",
        # The runner's answer to /detokenize and /tokenize, and its last word.
        "invalid character '<' looking for beginning of value",
        "json: cannot unmarshal string into Go struct field .tokens of type []int",
        "Deepseek2 does not support K-shift",
        "Vulkan is required",
    ],
)
def test_whatever_an_embedding_fails_of_is_a_crash_if_it_is_no_known_fault_of_the_input(message):
    reply = judge("ollama", 400, error_body(message, "invalid_request_error"), "/v1/embeddings")
    assert (reply.verdict, reply.status) == (Verdict.CRASHED, 500)  # clients try a 400 never again
    assert json.loads(reply.body) == error_body(message)


@pytest.mark.parametrize(
    "message",
    [
        "invalid input",
        "invalid input type",
        "invalid model name",
        "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int",
        # A line's own words stand behind the server's.
        "Invalid value for 'encoding_format' = connection refused. Supported values: ['float', 'base64'].",
        "the input length exceeds the context length",
        "input exceeds maximum context length and cannot be truncated further",
        "input after truncation exceeds maximum context length",
        "input is too large to process. increase the physical batch size (current batch size: 512)",
        "Input content cannot be empty",
        "Pooling type 'none' is not OAI compatible. Please use a different pooling type",
        '"nomic-embed-text" does not support chat',
        "missing request body",
    ],
)
def test_a_known_fault_of_an_embeddings_input_is_the_lines_own(message):
    assert judge("ollama", 400, error_body(message), "/v1/embeddings").verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    "message",
    [
        "connection refused",
        "server not responding",
        'health resp: Get "http://127.0.0.1:36000/health": EOF',
        "llama-server process no longer running: unknown ",
        "an error was encountered while running the model: unexpected EOF",
        "error reading llama-server chat response: read tcp 127.0.0.1:1->127.0.0.1:2: connection reset by peer",
        'llama-server apply-template error: Post "http://127.0.0.1:36000/apply-template": EOF',
        'Post "http://127.0.0.1:36000/v1/chat/completions": dial tcp 127.0.0.1:36000: connect: connection refused',
        "an unknown error was encountered while running the model ",
        'POST predict: Post "http://127.0.0.1:36000/completion": EOF',
        "llama runner process no longer running: 2 error: invalid input",
        "unexpected EOF",
        "CUDA error: out of memory",
        # What the runner logged last is no answer to this request.
        'model runner has unexpectedly stopped: {"error":{"code":400,"message":"no","type":"invalid_request_error"}}',
    ],
)
def test_a_chat_whose_runner_died_is_a_crash(message):
    assert judge("ollama", 500, error_body(message)).verdict is Verdict.CRASHED


@pytest.mark.parametrize(
    "words", ["connection refused", "CUDA error", "unexpected EOF", "out of memory", "failed to load model"]
)
@pytest.mark.parametrize(
    "message",
    [
        'llama-server returned invalid tool call arguments for "{}": unexpected end of JSON input',
        "error parsing tool call: raw='{}', err=unexpected end of JSON input",
        "failed to parse XML: {}",
        'template: :1:2: executing "" at <index .Messages 9>: error calling index: {}',
        "tool '{}' not found",
        'invalid format: {}; expected "json" or a valid JSON Schema object',
    ],
)
def test_words_of_the_line_or_of_its_answer_say_nothing_about_the_server(words, message):
    assert judge("ollama", 500, error_body(message.format(words))).verdict is Verdict.FAILED


TOO_LONG = "request (7011 tokens) exceeds the available context size (4096 tokens), try increasing it"
BLIND = "Multimodal data provided, but model does not support multimodal requests."


def runners(message, kind="invalid_request_error", code=400):
    """An error of Ollama's runner, as the string that Ollama makes of it."""
    return json.dumps({"error": {"code": code, "message": message, "type": kind}})


@pytest.mark.parametrize(
    ("endpoint", "status", "body", "message", "code", "param"),
    [
        (CHAT, 400, error_body(runners(TOO_LONG, "exceed_context_size_error")), TOO_LONG, "context_length_exceeded", 0),
        (CHAT, 400, {"error": runners(TOO_LONG)}, TOO_LONG, "context_length_exceeded", "messages"),
        ("/v1/responses", 400, error_body(runners(TOO_LONG)), TOO_LONG, "context_length_exceeded", "input"),
        ("/v1/completions", 400, error_body(runners(runners(TOO_LONG))), TOO_LONG, "context_length_exceeded", "prompt"),
        (CHAT, 400, runners(runners(TOO_LONG)).encode(), TOO_LONG, "context_length_exceeded", "messages"),
        (CHAT, 400, error_body(runners(BLIND)), BLIND, "unsupported_value", "messages"),
        (
            CHAT,
            400,
            error_body("image input is not supported - hint: provide the mmproj"),
            "image input is not supported - hint: provide the mmproj",
            "unsupported_value",
            "messages",
        ),
        (
            CHAT,
            400,
            error_body("llama-server apply-template error: " + runners("roles must alternate")),
            "llama-server apply-template error: roles must alternate",
            None,
            None,
        ),
        (
            CHAT,
            500,
            error_body(runners("roles must alternate", "server_error", 500)),
            "roles must alternate",
            None,
            None,
        ),
        (
            "/v1/embeddings",
            400,
            error_body("the input length exceeds the context length"),
            "the input length exceeds the context length",
            "context_length_exceeded",
            "input",
        ),
        (CHAT, 404, error_body("model 'x' not found"), "model 'x' not found", "model_not_found", "model"),
    ],
)
def test_an_error_in_an_error_is_unwrapped_and_has_openais_code(endpoint, status, body, message, code, param):
    error = json.loads(judge("ollama", status, body, endpoint).body)["error"]
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert error == {"message": message, "type": kind, "param": param or (code and "messages"), "code": code}


@pytest.mark.parametrize(
    "message",
    [
        "the input length exceeds the context length",
        "input after truncation exceeds maximum context length",
        "input exceeds maximum context length and cannot be truncated further",
        "the prompt is longer than the context length currently available to the model; …",
        "prompt too long; exceeded max context length by 3 tokens",
        TOO_LONG,
        "the request exceeds the available context size. try increasing the context size",
        "input is larger than the max context size. skipped",
        "This model's maximum context length is 64 tokens. However, your prompt contains 65 input tokens, which …",
        "Input length (70) exceeds model's maximum context length (64).",
        "The decoder prompt (length 70) is longer than the maximum model length of 64. Make sure …",
        "The decoder prompt (length 64) plus the number of requested output tokens (at least 1) is longer than the "
        "maximum model length of 64.",
        "'max_tokens' or 'max_completion_tokens' is too large: 99. This model's maximum context length is 64 …",
        "You passed 60 input tokens and requested 9 output tokens. However, the model's context length …",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "Trying to keep the first 4957 tokens when context the overflows. However, …",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 1000 `max_new_tokens`",
    ],
)
@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "openai"])
def test_a_prompt_that_is_too_long_has_openais_code_in_whatever_words(kind, message):
    assert json.loads(judge(kind, 400, error_body(message)).body)["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "message",
    [
        "What is a context window? is not a valid role",
        'invalid reasoning value: "the context size exceeds the context length"',
        "unknown tool: multimodal data provided, context size",
        'Invalid value: "image input is not supported".',
        "temperature must be at most 2, not 'this model's maximum context length is 1'",
    ],
)
def test_words_that_an_error_repeats_give_it_no_code(message):
    body = error_body(message)
    assert json.loads(judge("vllm", 400, body).body) == body


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
@pytest.mark.parametrize(
    ("before", "message", "type_", "status", "code"),
    [
        ("llama-server apply-template error: ", "roles must alternate", "invalid_request_error", 400, None),
        ("", TOO_LONG, "exceed_context_size_error", 400, "context_length_exceeded"),
        ("tokenize error: ", "too many bytes", "invalid_request_error", 413, None),
        ("", "'messages' is no array", "invalid_request_error", 422, None),
    ],
)
def test_a_refusal_in_an_http_500_is_a_refusal(kind, endpoint, before, message, type_, status, code):
    reply = judge(kind, 500, error_body(before + runners(message, type_, status)), endpoint)
    error = json.loads(reply.body)["error"]
    assert (reply.verdict, reply.status) == (Verdict.REFUSED, status)
    assert (error["message"], error["type"], error["code"]) == (before + message, "invalid_request_error", code)


@pytest.mark.parametrize(("status", "inner"), [(500, 500), (500, 503), (500, 404), (500, 401), (502, 502)])
def test_another_status_in_an_http_500_refuses_no_line(status, inner):
    reply = judge("ollama", status, error_body(runners("no", "server_error", inner)))
    assert reply.verdict is not Verdict.REFUSED


def test_json_that_an_error_quotes_is_left_in_it():
    said = f"unknown key in {runners('no')} at position 3"
    assert json.loads(judge("ollama", 400, error_body(said)).body) == error_body(said)


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
def test_a_picture_for_a_model_of_text_is_the_lines_own_fault_though_the_server_says_500(kind):
    message = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    for body in (error_body(runners(message, "server_error", 500)), error_body(message)):
        reply = judge(kind, 500, body)
        assert (reply.verdict, reply.status) == (Verdict.REFUSED, 400)
        error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": "unsupported_value"}
        assert json.loads(reply.body) == {"error": error}


@pytest.mark.parametrize(
    "body",
    [
        error_body("temperature must be at most 2"),
        error_body('unknown value {"a": 1}'),
        error_body('{"error": '),
        error_body('{"error": {}}'),
        {"error": "cloud models are disabled"},
        {"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400},
        {"error": {"error": {"error": [1]}}},
        {"detail": [{"loc": ["body"], "msg": "no"}]},
    ],
)
def test_an_error_that_holds_no_other_is_handed_out_as_it_is(body):
    assert json.loads(judge("vllm", 400, body).body) == body


def test_an_error_that_is_wrapped_without_end_is_judged():
    body = "no"
    for _ in range(14):
        body = json.dumps({"error": body})
    nested = json.loads('{"error":' * 900 + '"no"' + "}" * 900)
    for each in (body.encode(), nested):
        assert judge("ollama", 400, each).verdict is Verdict.REFUSED


def test_an_error_that_is_no_json_is_put_in_the_envelope():
    reply = judge("ollama", 500, b"<h1>Bad</h1>")
    assert json.loads(reply.body)["error"]["message"] == "<h1>Bad</h1>"


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_a_good_answer_of_each_endpoint(endpoint):
    body = answer(endpoint, ASKED)
    reply = judge("ollama", 200, body, endpoint)
    assert (reply.verdict, reply.usage.input_tokens) == (Verdict.ANSWERED, 7)
    handed_out = json.loads(reply.body)
    assert handed_out | {"id": None} == body | {"id": None}


def test_usage_under_both_namings():
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    chat = answer(CHAT, {"messages": [{"content": "x"}]})
    chat["usage"] |= details
    assert judge("openai", 200, chat).usage == Usage(7, 2, 3, 1)
    body = answer("/v1/responses", {"input": "x"})
    body["usage"] |= {"input_tokens_details": {"cached_tokens": 4}, "output_tokens": -1}
    assert judge("openai", 200, body, "/v1/responses").usage == Usage(7, 4, 0, 0)
