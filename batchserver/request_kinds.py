"""Kinds of requests, each of which waits in a queue of its own."""

from enum import Enum

from batches.lines.jsonl import ENDPOINTS

MONITORED = (b"/health", b"/livez", b"/readyz", b"/metrics")
OURS = (b"/v1/files", b"/v1/uploads", b"/v1/batches", b"/v1/models")
DOWNLOADED = (b"/content", b"/output", b"/errors")
ASKED = {*(endpoint.encode() for endpoint in ENDPOINTS), b"/v1/messages"}


class Kind(Enum):
    """What a request is, by the first line of its head."""

    MONITOR = "asks whether the server is alive"
    ADMIN = "is for the admin, and may be a guess of a password"
    LOOK = "reads what the database has"
    DOWNLOAD = "reads a file, or lines of a batch"
    SEND = "brings or changes something"
    MODEL = "waits for a model"
    OTHER = "is none of these, or names one of them in another way"

    @classmethod
    def of(cls, head: bytes) -> "Kind":
        method, _, rest = head.lstrip(b"\r\n").partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path in MONITORED:
            return cls.MONITOR
        if path.startswith(b"/admin/"):
            return cls.ADMIN
        if path.startswith(b"/api/") or (method == b"POST" and path in ASKED):
            return cls.MODEL
        if not path.startswith(OURS):
            return cls.OTHER
        if method not in (b"GET", b"HEAD"):
            return cls.SEND
        return cls.DOWNLOAD if path.endswith(DOWNLOADED) else cls.LOOK
