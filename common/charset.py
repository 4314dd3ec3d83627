"""The charset that a request names for its texts."""

import string

from django.http import HttpRequest

from common.errors import ApiError


def charset_of(request: HttpRequest) -> str:
    """The charset of the Content-Type, UTF-8 if it names none. Raises ApiError if nobody knows it, or if JSON and form
    fields are not ASCII in it (UTF-16)."""
    name = (request.content_params or {}).get("charset", "").strip(" '\"") or "utf-8"
    try:
        if string.printable.encode().decode(name, "replace") == string.printable:
            return name
    except (LookupError, ValueError):  # unknown, or no codec of texts
        pass
    raise ApiError(f"Unsupported charset '{name[:100]}' in the Content-Type. Send the body in UTF-8.")
