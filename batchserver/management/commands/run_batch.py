"""`manage.py run_batch FILE`: one batch from file to file, through the HTTP API like any client.

Uses the server that is running, or starts one until the batch is over.
"""

import json
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from batches import backends
from batchserver import first_start
from batchserver.management.commands._client import FINAL, Client
from batchserver.supervisor import Child
from common.jsonl import read_lines

POLL_EVERY_S = 0.5
SERVER_START_S = 300.0  # the first start with the embedded model installs it
RATE_WINDOW_S = 15.0
SAMPLE_LINES = 3


class Command(BaseCommand):
    help = "Run a JSONL file of requests as a batch and write the results. Starts a server if none is running."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="requests, one JSON object on each line")
        parser.add_argument("-o", "--output", type=Path, default=Path("results.jsonl"), help="default: results.jsonl")
        parser.add_argument("--window", default="24h", help="completion window, such as 24h or 7d (default: 24h)")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        output: Path = options["output"]
        endpoint = _endpoint_of(path)
        if not output.absolute().parent.is_dir():
            raise CommandError(f"There is no directory {output.absolute().parent} for the results.")
        with self._server() as client:
            batch = client.create(path, endpoint, options["window"])
            self.stdout.write(f"Batch {batch['id']}")
            try:
                batch = self._follow(client, batch["id"])
            except KeyboardInterrupt:
                raise CommandError(
                    f"Interrupted. {batch['id']} is kept, with every finished line, and goes on while a server runs.",
                    returncode=130,
                ) from None
            self._deliver(client, batch, path, output)

    # The server

    @contextmanager
    def _server(self) -> Iterator["Client"]:
        client = Client(_address(settings.PORT))
        if client.health() is not None:
            self.stdout.write(f"Using the server at {client.base}.")
            yield client
            return
        environment = self._backend_for_own_server()
        log = settings.DATA_DIR / "logs" / "run.log"
        first_start.make_directories()
        log.parent.mkdir(mode=0o700, exist_ok=True)
        self.stdout.write(f"Starting a server for this run (log: {log})…")
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "serve", "--no-admin"]
        server = Child("server", command, environment=environment, log=log)
        server.start()
        try:
            self._wait_for(server, client, log)
            yield client
        finally:
            if server.process is not None:
                server.process.terminate()
                try:
                    server.process.wait(60)
                except subprocess.TimeoutExpired:
                    server.process.kill()

    def _backend_for_own_server(self) -> dict[str, str]:
        """The environment of the server of this run: empty, or with the embedded backend instead of Ollama.

        The embedded backend gets a DATA_DIR of its own: it must never answer a batch that waits for the real model.
        """
        if settings.EMBEDDED_BACKEND:
            return {}
        try:
            backends.probe()
        except backends.Unreachable as error:
            if not settings.BACKEND_IS_OLLAMA:
                raise CommandError(str(error)) from None
            self.stdout.write(f"{error} Then, once: ollama pull {settings.MODEL_NAME}")
            self.stdout.write(
                self.style.WARNING(
                    f"Going on with the embedded backend: EVERY model name is answered by "
                    f"{settings.EMBEDDED_BACKEND_MODEL}, a tiny model for trying things out."
                )
            )
            return {
                "BACKEND_URL": "embedded",
                "MODEL_NAME": "",
                "DATA_DIR": str(settings.DATA_DIR / "embedded"),
                "DATABASE_URL": "",
                "CELERY_BROKER_URL": "",
            }
        return {}

    def _wait_for(self, server: Child, client: "Client", log: Path) -> None:
        ends_at = time.monotonic() + SERVER_START_S
        while True:
            health = client.health()
            if health is not None and health["status"] != "failing" and health["backends"]:
                return
            if not server.is_alive or time.monotonic() > ends_at:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise CommandError(f"The server did not start. The end of {log}:\n{tail}")
            time.sleep(0.1)

    # The batch

    def _follow(self, client: "Client", batch_id: str) -> dict[str, Any]:
        """Poll until the batch is over, with a progress bar; returns the batch in its final status."""
        reason = ""
        rate = TokenRate()
        shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        with tqdm(total=None, unit="line", bar_format=shape, file=sys.stdout, mininterval=5) as bar:
            while True:
                batch = client.batch(batch_id)
                counts = batch["request_counts"]
                if batch["status"] != "validating" and bar.total != counts["total"]:
                    bar.reset(total=counts["total"])
                bar.set_postfix_str(
                    f"{counts['failed']} failed, {rate(batch['usage']['output_tokens']):.0f} tokens/s", False
                )
                bar.update(counts["completed"] + counts["failed"] - bar.n)
                # In a log file each refresh would add a line.
                if sys.stdout.isatty() or batch["status"] in FINAL:
                    bar.refresh()
                if batch["status"] in FINAL:
                    return batch
                health = client.health() or {}
                if health.get("reason") and health["reason"] != reason:
                    bar.write(f"Waiting: {health['reason']}", file=sys.stdout)
                reason = health.get("reason") or ""
                time.sleep(POLL_EVERY_S)

    def _deliver(self, client: "Client", batch: dict[str, Any], path: Path, output: Path) -> None:
        if batch["status"] == "failed":
            raise CommandError("Nothing was run, the file has mistakes:\n" + _mistakes(batch["errors"]["data"]))
        errors = output.with_suffix(".errors" + (output.suffix or ".jsonl"))
        for file_id, target in ((batch["output_file_id"], output), (batch["error_file_id"], errors)):
            target.unlink(missing_ok=True)
            if file_id is not None:
                client.download(file_id, target)
        if batch["output_file_id"] is not None:
            for question, answer in _sample(path, output):
                self.stdout.write(f"\n{question}\n  → {answer}")
            self.stdout.write(f"\nResults: {output} ({batch['request_counts']['completed']} lines)")
        if batch["error_file_id"] is not None:
            raise CommandError(f"Some lines have no answer; why is in {errors}. The batch is {batch['status']}.")


class TokenRate:
    """Tokens a second over the last RATE_WINDOW_S, from a total that is read now and then."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, int]] = deque()

    def __call__(self, tokens: int) -> float:
        now = time.monotonic()
        self.seen.append((now, tokens))
        while self.seen[0][0] < now - RATE_WINDOW_S:
            self.seen.popleft()
        passed = now - self.seen[0][0]
        return (tokens - self.seen[0][1]) / passed if passed else 0.0


def _mistakes(errors: list[dict[str, Any]]) -> str:
    """One line for each message, with the numbers of the lines that have it."""
    lines_with: dict[str, list[int]] = {}
    for error in errors:
        lines_with.setdefault(error["message"], []).extend(filter(None, [error["line"]]))
    shown = []
    for message, numbers in lines_with.items():
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        shown.append(f"  line {numbers[0]}{more}: {message}" if numbers else f"  {message}")
    return "\n".join(shown)


def _endpoint_of(path: Path) -> str:
    """The `url` of the first line: all lines of a batch have the same."""
    try:
        with path.open("rb") as file:
            lines = read_lines(file, max_line_bytes=settings.MAX_LINE_BYTES)
            first = json.loads(next((line.content for line in lines if line.content), b""))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise CommandError(f"The first line of {path} is not JSON.") from None
    endpoint = first.get("url") if isinstance(first, dict) else None
    if not isinstance(endpoint, str):
        raise CommandError(f"The first line of {path} has no url, such as /v1/chat/completions.")
    return endpoint


def _address(port: int) -> str:
    host = settings.HOST if settings.HOST not in ("0.0.0.0", "::") else "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _sample(requests_path: Path, results_path: Path) -> Iterator[tuple[str, str]]:
    """The first questions and their answers, each cut to the terminal's width."""
    width = min(shutil.get_terminal_size().columns, 120) - 6
    answers: dict[str, str] = {}
    with results_path.open() as results:
        for text, _ in zip(results, range(SAMPLE_LINES), strict=False):
            result = json.loads(text)
            answers[result["custom_id"]] = _text_of(result["response"]["body"])
    with requests_path.open("rb") as file:
        for line in read_lines(file, max_line_bytes=settings.MAX_LINE_BYTES):
            if not answers:
                return
            request = json.loads(line.content) if line.content else {}
            answer = answers.pop(request.get("custom_id", ""), None)
            if answer is not None:
                yield _short(_text_of(request["body"]), width), _short(answer, width)


def _text_of(body: dict[str, Any]) -> str:
    """The text of a request or a reply of any of the endpoints, for a person to read."""
    match body:
        case {"messages": [*_, {"content": str(text)}]} | {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"text": str(text)}, *_]} | {"prompt": str(text)} | {"input": str(text)}:
            return text
        case {"output": [*_, {"content": [{"text": str(text)}, *_]}]}:
            return text
        case {"data": [{"embedding": list(vector)}, *_]}:
            return f"{len(vector)} numbers"
    return json.dumps(body, ensure_ascii=False)


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
