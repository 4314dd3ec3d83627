"""Object ids with the prefixes that clients know: random ones, and ones derived from what they name."""

import hashlib
import secrets
import string

FILE, BATCH, UPLOAD, PART = "file-", "batch_", "upload_", "part_"
REQUEST, BATCH_REQUEST, EVENT = "req_", "batch_req_", "evt_"

_BASE62 = string.digits + string.ascii_letters


def new_file_id() -> str:
    return FILE + "".join(secrets.choice(_BASE62) for _ in range(22))


def new_batch_id() -> str:
    return BATCH + secrets.token_hex(16)


def new_upload_id() -> str:
    return UPLOAD + secrets.token_hex(16)


def new_part_id() -> str:
    return PART + secrets.token_hex(16)


def new_request_id() -> str:
    return REQUEST + secrets.token_hex(16)


def derived_file_id(*parts: object) -> str:
    """The same parts give the same id, so that two writers of one result file use the same id."""
    number = int.from_bytes(_digest(parts), "big")
    letters = []
    for _ in range(22):
        number, index = divmod(number, 62)
        letters.append(_BASE62[index])
    return FILE + "".join(letters)


def derived_id(prefix: str, *parts: object) -> str:
    """`prefix` and 32 hex digits that depend on the parts alone."""
    return prefix + _digest(parts).hex()[:32]


def _digest(parts: tuple[object, ...]) -> bytes:
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).digest()
