"""The charset that a request names for its texts."""

import codecs
import string

from django.http import HttpRequest
from django.utils.http import parse_header_parameters

from common.errors import ApiError

REFUSED = "batchserver.refused_charset"  # of a request's environment, if nobody can read the request in it
# In some codecs "\\" or the escape sign begins something else. Python warns of an escape that it does not know.
_PRINTABLE = string.printable.replace("\\", "\\\\") + "\\u0041\x1b$B!!\x1b(B"
_UTF_8 = ("utf-8", "utf-8-sig", "ascii")  # by the names of their codecs; a BOM is passed over in any case


def charset_of(request: HttpRequest) -> str:
    """The charset of a form's Content-Type, UTF-8 if it names none. Raises ApiError if nobody knows it, or if fields in
    ASCII are something else in it (UTF-16)."""
    name = request.META.get(REFUSED) or _name(request.content_params or {})
    if not _keeps_ascii(name):
        raise _unsupported(name)
    return name


def require_utf8(request: HttpRequest) -> None:
    """Raise ApiError if the Content-Type names another charset than UTF-8, in which JSON is (RFC 8259)."""
    name = charset_of(request)
    if codecs.lookup(name).name not in _UTF_8:
        raise _unsupported(name)


def refused_charset(content_type: str) -> str:
    """The charset that this Content-Type names, if it is one that `charset_of` refuses; else empty."""
    try:
        name = _name(parse_header_parameters(content_type)[1])
    except ValueError:  # a parameter that names a charset for itself: charset*=nonsense''utf-8
        return content_type
    return "" if _keeps_ascii(name) else name


def is_charset(name: str) -> bool:
    """Whether texts can be read in this charset."""
    return _decoded(b"a", name) is not None


def _unsupported(name: str) -> ApiError:
    return ApiError(f"Unsupported charset '{name[:100]}' in the Content-Type. Send the body in UTF-8.")


def _name(parameters: dict[str, str]) -> str:
    return parameters.get("charset", "").strip(" '\"") or "utf-8"


def _keeps_ascii(name: str) -> bool:
    return _decoded(_PRINTABLE.encode(), name) == _PRINTABLE


def _decoded(content: bytes, charset: str) -> str | None:
    try:
        return content.decode(charset, "replace")
    except (LookupError, ValueError):  # unknown, or no codec of texts
        return None
