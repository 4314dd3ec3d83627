"""A form as clients send it: their own code page in file names, encoded words, one file part."""

import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Any

from django.core.exceptions import TooManyFilesSent
from django.http.multipartparser import MultiPartParser as DjangoMultiPartParser
from django.http.multipartparser import MultiPartParserError
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser, DataAndFiles

from common.byte_forms import code_page, is_utf8
from common.charset import charset_of, is_charset
from common.errors import ApiError

# Of the headers of one part; Django takes no more.
MOST_HEADER_BYTES = 2**16
_WORD = r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?="
CODED_PARAMETER = re.compile(rb"(\*\s*=\s*\"?)([^'\";\s]*)(?=')")  # filename*=utf-8''a%C3%A4
ENCODED_WORDS = re.compile(rf"{_WORD}(?:\s+{_WORD})*")  # the space between two of them is none of the text


class FormParser(BaseParser):
    """multipart/form-data with one file part at most, received by the request's upload handlers."""

    media_type = "multipart/form-data"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> "DataAndFiles[Any, Any]":
        request = parser_context["request"]
        meta = request.META | {"CONTENT_TYPE": media_type}
        try:
            return self._parse(request, meta, stream)
        except Exception:
            for handler in request.upload_handlers:
                handler.upload_interrupted()  # Django closes the files that arrived whole
            raise

    def _parse(self, request: Any, meta: Any, stream: Any) -> "DataAndFiles[Any, Any]":
        try:
            form = _Form(meta, stream, request.upload_handlers, charset_of(request._request))
            data, files = form.parse()
        except MultiPartParserError as error:
            raise ParseError(str(error)) from error
        except TooManyFilesSent:
            raise ApiError("The form has several file parts. Send one file in each request.", param="file") from None
        return DataAndFiles(data, files)


class _Form(DjangoMultiPartParser):
    _boundary: bytes

    def __init__(self, meta: Any, stream: Any, handlers: Any, encoding: str) -> None:
        super().__init__(meta, stream, handlers, encoding)
        self._input_data = Utf8Headers(stream, self._boundary)

    def sanitize_file_name(self, file_name: str) -> str | None:
        return super().sanitize_file_name(_without_encoded_words(file_name))


def _without_encoded_words(name: str) -> str:
    """`=?utf-8?Q?a=C3=A4?=` (RFC 2047) as the text that it stands for; anything else as it is."""
    return ENCODED_WORDS.sub(_decoded, name)


def _decoded(words: re.Match[str]) -> str:
    try:
        return str(make_header(decode_header(words[0])))
    except (HeaderParseError, LookupError, ValueError):
        return words[0]


class Utf8Headers:
    """A form's bytes, with the headers of its parts in UTF-8, whatever code page they are in. Django leaves out a part
    whose headers are not UTF-8, or name a charset that it does not know. The content of the parts stays as it is."""

    def __init__(self, stream: Any, boundary: bytes) -> None:
        self._stream = stream
        self._begin = b"--" + boundary + b"\r\n"
        self._rest = b""  # was read, and is not told apart yet
        self._in_headers = False

    def read(self, size: int) -> bytes:
        """Some bytes, more than `size` if a header became longer; none at the end."""
        while chunk := self._stream.read(size):
            if ready := self._converted(self._rest + chunk):
                return ready
        ready, self._rest = self._rest, b""
        return ready

    def _converted(self, content: bytes) -> bytes:
        ready = bytearray()
        while True:
            mark = b"\r\n\r\n" if self._in_headers else self._begin
            end = content.find(mark)
            if end < 0:
                break
            piece = content[:end]
            ready += _as_utf8(piece) if self._in_headers else piece
            ready += mark
            content = content[end + len(mark) :]
            self._in_headers = not self._in_headers
        # The mark may have begun in what is left of a part; headers are converted once they are whole.
        kept = min(len(content), MOST_HEADER_BYTES if self._in_headers else len(mark) - 1)
        ready += content[: len(content) - kept]
        self._rest = content[len(content) - kept :]
        return bytes(ready)


def _as_utf8(headers: bytes) -> bytes:
    # Names are in UTF-8, but those from Windows in the code page of the country.
    if not is_utf8(headers):
        headers = headers.decode(code_page(headers) or "cp1252", "replace").encode()
    return CODED_PARAMETER.sub(_in_known_charset, headers)


def _in_known_charset(parameter: re.Match[bytes]) -> bytes:
    """A file name is a label: one in a charset that nobody knows is read as UTF-8."""
    begin, charset = parameter.groups()
    return parameter[0] if not charset or is_charset(charset.decode()) else begin + b"utf-8"
