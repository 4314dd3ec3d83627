"""Every shape in which the OpenAI API reports a mistake: the HTTP envelope, a batch's `errors` entry, a line's `error`;
and the shapes of the HTTP envelope that Ollama's own API and Anthropic's have.

Three levels, never mixed: a bad *request* is an ApiError and nothing is stored; a bad *file* gives a batch that becomes
`failed` with one `errors` entry for each bad line; a bad *line* goes to the error file and the batch still completes.
"""

import math
import re
from typing import Any


class ApiError(Exception):
    """A request that is refused. Carries what the envelope `{"error": {message, type, param, code}}` needs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",  # the name that the envelope has for it
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def envelope(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def native(self) -> dict[str, Any]:
        """As Ollama's own API says it."""
        return {"error": self.message}

    @property
    def anthropic(self) -> dict[str, Any]:
        """As Anthropic's API says it, whose types go by the status."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def body_at(self, path: str) -> dict[str, Any]:
        """The body of the answer at this address, in the shape that its clients read."""
        if path.startswith("/api/"):
            return self.native
        return self.anthropic if re.match(r"/v1/messages(/|$)", path) else self.envelope


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def bad_json() -> ApiError:
    return ApiError(
        "We could not parse the JSON body of your request. The API expects a JSON payload, but what was sent was not "
        "valid JSON."
    )


def missing_parameter(param: str) -> ApiError:
    return ApiError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def invalid_value(param: str, value: object, allowed: list[str]) -> ApiError:
    quoted = [f"'{name}'" for name in allowed]
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f", and {quoted[-1]}"
    return ApiError(f"Invalid value: '{value}'. Supported values are: {listed}.", param=param, code="invalid_value")


_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def invalid_type(param: str, expected: str, value: object) -> ApiError:
    """`expected` has its article ("a string"). The message names the JSON type of the value, never the value itself."""
    got = _JSON_TYPES.get(type(value), "something else")
    return ApiError(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param=param, code="invalid_type"
    )


def not_an_integer(param: str, text: str) -> ApiError:
    return ApiError(f"Invalid '{param}': expected an integer, but got '{text}'.", param=param, code="invalid_type")


def too_long(param: str, text: str, most: int) -> ApiError:
    message = (
        f"Invalid '{param}': string too long. Expected a string with maximum length {most}, but got a string with "
        f"length {len(text)} instead."
    )
    return ApiError(message, param=param, code="string_above_max_length")


def not_storable(param: str) -> ApiError:
    return ApiError(f"Invalid '{param}': it holds a NUL or half a surrogate pair.", param=param, code="invalid_value")


def out_of_range(param: str, value: int, *, least: int, most: int) -> ApiError | None:
    """The refusal of an integer outside `least`..`most`; None if it is inside."""
    if value > most:
        where, bound, code = "above maximum", f"<= {most}", "integer_above_max_value"
    elif value < least:
        where, bound, code = "below minimum", f">= {least}", "integer_below_min_value"
    else:
        return None
    message = f"Invalid '{param}': integer {where} value. Expected a value {bound}, but got {value} instead."
    return ApiError(message, param=param, code=code)


def too_large(param: str, most_bytes: int) -> ApiError:
    return ApiError(
        f"Invalid '{param}': larger than this server accepts. Expected at most {most_bytes} bytes.",
        status=413,
        param=param,
        code="file_too_large",
    )


def conflict(message: str, *, code: str | None = None) -> ApiError:
    """A 409 that a retry does not change. The official clients retry a 409 unless a header tells them not to."""
    return ApiError(message, status=409, code=code, headers={"x-should-retry": "false"})


def too_many_requests(message: str, *, retry_after_s: float) -> ApiError:
    """A 429 after which the same request is good a little later; the official clients wait so long and try again."""
    return ApiError(
        message,
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(math.ceil(retry_after_s))},
    )


def used_up(message: str, *, status: int = 429) -> ApiError:
    """A limit of an owner that no retry within minutes gets round, so the official clients do not try again. 403 for
    what waiting alone never frees."""
    return ApiError(
        message,
        status=status,
        type="insufficient_quota",
        code="insufficient_quota",
        headers={"x-should-retry": "false"},
    )


def no_room() -> ApiError:
    return ApiError("The server has no room to store this file.", status=507, type="server_error")


def batch_error(code: str, message: str, *, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    """One entry of a failed batch's `errors.data`. `line` is 1-based; None: the whole file."""
    return {"code": code, "message": message, "param": param, "line": line}


def line_error(code: str, message: str) -> dict[str, str]:
    """The `error` of an error-file line that never got an HTTP answer."""
    return {"code": code, "message": message}


# The errors of lines that were open when their batch ended, by the name of their state.
SETTLED = {
    "cancelled": line_error("batch_cancelled", "The batch was cancelled before this request executed."),
    "expired": line_error("batch_expired", "This request could not be executed before the completion window expired."),
}
