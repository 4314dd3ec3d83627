"""The HTTP API of a batch server, as any client uses it."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from client.trouble import Away, Refused, Trouble

if TYPE_CHECKING:
    import requests

FINAL = ("completed", "failed", "expired", "cancelled")
SERVICE = "ollama-batch-server"
READ_TIMEOUT_S = 60.0
PATIENCE_S = 30.0
# Answers of a proxy, or of a server that is starting: the same request may be answered in a moment.
FOR_A_MOMENT = (429, 502, 503, 504)


@dataclass(frozen=True)
class Chunk:
    """Finished lines of a batch, read as they come. `last_line` is the `after` of the next request; `is_incomplete`:
    more will come."""

    lines: Iterator[bytes]
    last_line: int
    is_incomplete: bool


class Server:
    """One batch server. A request is sent again for `patience_s` if the server does not answer: it may be restarting.
    Each request is safe to send twice, or carries a key by which the server knows it again."""

    def __init__(
        self, address: str, api_key: str = "", *, patience_s: float = PATIENCE_S, certificates: str | None = None
    ) -> None:
        import requests

        self.base = normalized(address)
        self.patience_s = patience_s
        # What the loop asks between two tries; raises if there is no use in trying again.
        self.while_away: Callable[[], None] = lambda: None
        self.session = requests.Session()
        # No proxy and no password of the machine's: the address is one of the person's own network.
        self.session.trust_env = False
        self.session.verify = certificates or True
        self.send_key(api_key)

    def send_key(self, api_key: str) -> None:
        """Send this key with each request under /v1 from now on; none if it is empty."""
        self.about_key = "the key is read from OPENAI_API_KEY"  # for who is refused
        if api_key:
            self.session.headers["Authorization"] = f"Bearer {api_key}"

    # What there is

    def health(self) -> dict[str, Any] | None:
        """What the server says of itself; None if no batch server answers there. It is asked without the key: whose
        server it is shows in the answer."""
        import requests

        try:
            # A header of None leaves out the session's own.
            without_key: dict[str, Any] = {"Authorization": None}
            address = f"{self.base}/health"
            body = self.session.get(address, headers=without_key, timeout=10, allow_redirects=False).json()
        except (requests.RequestException, ValueError):
            return None
        return body if isinstance(body, dict) and body.get("service") == SERVICE else None

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return _json(self._ask("GET", path, params=params))

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self.get(f"batches/{batch_id}")

    def objects(self, path: str, *, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The objects of a list, page by page, the newest first."""
        after, given = "", 0
        while True:
            page = self.get(path, limit=min(100, (most or 100) - given if most else 100), after=after)
            yield from page["data"]
            given += len(page["data"])
            if not page["has_more"] or not page["data"] or (most is not None and given >= most):
                return
            after = page["last_id"]

    # What changes something

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return _json(self._ask("POST", path, json=body or {}, headers={"Idempotency-Key": str(uuid.uuid4())}))

    def delete(self, path: str) -> dict[str, Any]:
        return _json(self._ask("DELETE", path))

    def upload(self, path: Path, *, digest: str = "", name: str = "") -> dict[str, Any]:
        """The file object; `name` is what the server calls it, that of the path if empty. Raises Trouble if the file's
        sha256 is not `digest`: it changed since it was read."""
        form = _Form(path, name or path.name)
        headers = {"Content-Type": f"multipart/form-data; boundary={form.boundary}"}
        file = _json(self._ask("POST", "files", data=lambda: iter(form), headers=headers))
        if digest and form.digest != digest:
            self.delete(f"files/{file['id']}")
            raise Trouble(f"{path} changed while it was sent. No batch was made; run the command again.")
        return file

    def create(self, path: Path, endpoint: str, window: str, **fields: Any) -> dict[str, Any]:
        """A batch of the lines of a file."""
        body = {"input_file_id": self.upload(path)["id"], "endpoint": endpoint, "completion_window": window}
        return self.post("batches", body | fields)

    # What is long

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file. Raises Away if the connection ends before the file does."""
        response = self._ask("GET", f"files/{file_id}/content", may_lead_elsewhere=True, stream=True)
        yield from self._stream(response)

    def lines(self, file_id: str | None) -> Iterator[bytes]:
        """The lines of a result file, one at a time; none for no file."""
        return iter(()) if file_id is None else _split(self.content(file_id))

    def download(self, file_id: str, target: Path) -> None:
        with target.open("wb") as file:
            for chunk in self.content(file_id):
                file.write(chunk)

    def finished_lines(self, batch_id: str, what: str = "output", after: int = 0) -> Chunk:
        """The lines of `output` or `errors` that came after the `after`-th, while the batch runs too."""
        response = self._ask("GET", f"batches/{batch_id}/{what}", params={"after": after}, stream=True)
        last = response.headers.get("X-Last-Line", "")
        if not last.isdecimal():
            raise Trouble(f"{self.base} does not say how far its lines go. Is it an older version of the server?")
        return Chunk(
            lines=_split(self._stream(response)),
            last_line=int(last),
            is_incomplete=response.headers.get("X-Incomplete", "false") == "true",
        )

    def _stream(self, response: "requests.Response") -> Iterator[bytes]:
        import requests

        try:
            with response:
                yield from response.iter_content(2**20)
        except requests.RequestException as error:
            raise Away(f"The connection to {self.base} broke before everything was read; try again.") from error

    # One request

    def _ask(self, method: str, path: str, *, may_lead_elsewhere: bool = False, **options: Any) -> "requests.Response":
        """The good answer. Raises Refused for an error of the server, Away if it does not answer in `patience_s`.

        `may_lead_elsewhere`: the server may name another address that has what was asked for, which does not get the
        key.
        """
        import requests

        ends_at = time.monotonic() + self.patience_s
        make_body = options.get("data")
        while True:
            if make_body is not None:
                options["data"] = make_body()
            wait_s, response = 1.0, None
            try:
                url = f"{self.base}/v1/{path}"
                response = self.session.request(method, url, timeout=READ_TIMEOUT_S, allow_redirects=False, **options)
                if may_lead_elsewhere and _leads_elsewhere(response):
                    there = urljoin(url, response.headers["Location"])
                    unsigned: dict[str, Any] = {"Authorization": None}
                    response = self.session.get(there, headers=unsigned, timeout=READ_TIMEOUT_S, stream=True)
                if response.status_code not in FOR_A_MOMENT or _is_final_answer(response):
                    return self._checked(response)
                wait_s = _retry_after_s(response)
            except (requests.exceptions.InvalidURL, requests.exceptions.SSLError) as error:
                raise Trouble(f"{self.base} cannot be used: {_reason(error)}") from None
            except requests.RequestException:
                # An upload has no key: it is sent again only by a person.
                if make_body is not None:
                    raise Away(f"The server at {self.base} ended the connection during the upload.") from None
            if time.monotonic() + wait_s > ends_at:
                if response is not None:
                    return self._checked(response)
                raise Away(f"The server at {self.base} does not answer.")
            self.while_away()
            time.sleep(wait_s)

    def _checked(self, response: "requests.Response") -> "requests.Response":
        """The answer itself, if it is a good one. Raises Refused for an error of the server, Trouble for a redirect."""
        if response.is_redirect:
            raise Trouble(f"{self.base} redirects to {response.headers['Location']}. Name that address with --server.")
        if response.ok:
            return response
        error = _envelope(response)
        message = str(error.get("message") or f"{self.base} answered with status {response.status_code}.")
        if response.status_code == 401:
            message += f" ({self.about_key})"
        raise Refused(message, status=response.status_code, code=error.get("code"))


def normalized(address: str) -> str:
    """The address without `/v1` or `/` at its end; http if it names no scheme. Raises Trouble if it is no address."""
    text = address.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment:
        raise Trouble(f"--server {address!r}: expected an address such as http://localhost:4080.")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their line ends."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _envelope(response: "requests.Response") -> dict[str, Any]:
    """The error that the server tells; empty where the answer is not the server's own, but a proxy's page."""
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _leads_elsewhere(response: "requests.Response") -> bool:
    """Whether this redirect is to something else than the same path, as of a proxy that wants HTTPS."""
    return response.is_redirect and urlsplit(response.headers["Location"]).path != urlsplit(response.url).path


def _is_final_answer(response: "requests.Response") -> bool:
    """Whether the server itself refuses for good: it says so in its envelope, and names no time to come back."""
    return bool(_envelope(response)) and "Retry-After" not in response.headers


def _retry_after_s(response: "requests.Response") -> float:
    named = response.headers.get("Retry-After", "")
    return min(float(named), 30.0) if named.isdecimal() else 1.0


def _json(response: "requests.Response") -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Trouble(f"{urlsplit(response.url).netloc} answered with something else than JSON. Is it a batch server?")
    return body


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


class _Form:
    """The upload form, streamed: the file may be larger than memory. `digest` is the sha256 of what was sent."""

    boundary = "ollama-batch-server-4b1d7c0e9f2a"

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.digest = ""

    def __iter__(self) -> Iterator[bytes]:
        edge = b"--" + self.boundary.encode()
        # As browsers write a name that holds quotes or line ends.
        name = self.name.encode(errors="replace").replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")
        yield edge + b'\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield edge + b'\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                yield chunk
        self.digest = digest.hexdigest()
        yield b"\r\n" + edge + b"--\r\n"


def as_json(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, indent=2)
