"""The usual scripts instead of a batch: read a line, post it, append the answer to a file.

One line after the other, by threads, or by the two well-known asynchronous clients. Each returns the seconds it took.
"""

import asyncio
import importlib
import json
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import IO, Any

import requests

# httpx goes by two names: the one that the official client brings is a successor.
HTTPX = next((name for name in ("httpx", "httpx2") if find_spec(name)), "")
AIOHTTP = "aiohttp" if find_spec("aiohttp") else ""
TIMEOUT_S = 3600.0

Post = Callable[[str, Any], Awaitable[Any]]


class Work:
    """The lines of an input file, handed out one by one, and the file of their answers."""

    def __init__(self, requests_file: IO[str], answers: IO[str]) -> None:
        self.lines = map(json.loads, requests_file)
        self.answers = answers
        self.guard = Lock()
        self.is_over = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (request := self._next()) is not None:
            yield request

    def _next(self) -> dict[str, Any] | None:
        with self.guard:
            return None if self.is_over else next(self.lines, None)

    def answered(self, request: dict[str, Any], body: Any) -> None:
        line = json.dumps({"custom_id": request["custom_id"], "response": {"body": body}}) + "\n"
        with self.guard:
            self.answers.write(line)


def loop(url: str, path: Path) -> float:
    """`requests`, one line after the other over one kept connection."""
    with _work(path) as work, _session() as session:
        started = time.monotonic()
        _post_all(url, work, session)
        return time.monotonic() - started


def threads(url: str, path: Path, in_flight: int) -> float:
    """`requests`, `in_flight` threads with a session each."""

    def run() -> None:
        with _session() as session:
            _post_all(url, work, session)

    with _work(path) as work, ThreadPoolExecutor(in_flight) as pool:
        started = time.monotonic()
        try:
            for each in [pool.submit(run) for _ in range(in_flight)]:
                each.result()
        finally:
            work.is_over = True  # after an interrupt, the other threads end too
        return time.monotonic() - started


def with_aiohttp(url: str, path: Path, in_flight: int) -> float:
    """`aiohttp`, one session with `in_flight` connections."""
    aiohttp = importlib.import_module(AIOHTTP)

    async def run(work: Work) -> None:
        timeout, connector = aiohttp.ClientTimeout(total=TIMEOUT_S), aiohttp.TCPConnector(limit=in_flight)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def post(address: str, body: Any) -> Any:
                async with session.post(address, json=body) as response:
                    response.raise_for_status()
                    return await response.json()

            await _post_at_once(url, work, post, in_flight)

    return _timed(path, run)


def with_httpx(url: str, path: Path, in_flight: int) -> float:
    """`httpx`, one client with `in_flight` connections."""
    httpx = importlib.import_module(HTTPX)

    async def run(work: Work) -> None:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:

            async def post(address: str, body: Any) -> Any:
                response = await client.post(address, json=body)
                response.raise_for_status()
                return response.json()

            await _post_at_once(url, work, post, in_flight)

    return _timed(path, run)


def run_batch(command: str, path: Path) -> float:
    """A program that answers a whole file by itself, `vllm run-batch` above all; the start of its engine counts."""
    words = [*shlex.split(command), "-i", str(path), "-o", str(answers_to(path))]
    started = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def sockets(url: str, path: Path, in_flight: int) -> float:
    """Ready bytes over `in_flight` sockets; the answers are only counted: what the model server can do at most."""
    host, _, port = url.removeprefix("http://").partition(":")

    async def run(work: Work) -> None:
        async def send() -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            for request in work:
                body = json.dumps(request["body"]).encode()
                writer.write(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (request["url"].encode(), len(body)))
                writer.write(body)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.rpartition(b":")[2]))
            writer.close()

        await asyncio.gather(*(send() for _ in range(in_flight)))

    return _timed(path, run)


def answers_to(path: Path) -> Path:
    """Where the answers to an input file are."""
    return path.with_name(f"answers-to-{path.name}")


def _post_all(url: str, work: Work, session: requests.Session) -> None:
    for request in work:
        response = session.post(url + request["url"], json=request["body"])
        response.raise_for_status()
        work.answered(request, response.json())


async def _post_at_once(url: str, work: Work, post: Post, in_flight: int) -> None:
    async def send() -> None:
        for request in work:
            work.answered(request, await post(url + request["url"], request["body"]))

    await asyncio.gather(*(send() for _ in range(in_flight)))


def _timed(path: Path, run: Callable[[Work], Any]) -> float:
    with _work(path) as work:
        started = time.monotonic()
        asyncio.run(run(work))
        return time.monotonic() - started


@contextmanager
def _work(path: Path) -> Iterator[Work]:
    with path.open() as requests_file, answers_to(path).open("w") as answers:
        yield Work(requests_file, answers)


@contextmanager
def _session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session
