"""The commands in this process, against a server that `responses` plays."""

import json

import pytest
import responses
from click.testing import CliRunner

from client.api import Server
from client.commands import cli

BASE = "http://box:4080"


def batch(batch_id="batch_1", status="completed", *, completed=1, failed=0, total=1, **others):
    """A batch object as the server gives it."""
    members = {"output_file_id": None, "error_file_id": None, "metadata": None, "model": "m", "errors": None}
    members |= {"created_at": 1_700_000_000, "expires_at": 4_000_000_000, "usage": {"output_tokens": 5}}
    counts = {"completed": completed, "failed": failed, "total": total}
    return {"id": batch_id, "object": "batch", "status": status, "request_counts": counts} | members | others


def progress(status="in_progress", *, completed=0, failed=0, total=1, **others):
    members = {"waiting_for": None, "warnings": [], "tokens_per_second": None, "lines_per_minute": None}
    members |= {"estimated_end": None, "estimated_from": None}
    counts = {"completed": completed, "failed": failed, "total": total}
    return {"status": status, "request_counts": counts} | members | others


class Box:
    """The server, and a person who types commands for it."""

    def __init__(self, played, monkeypatch):
        self.played = played
        self.monkeypatch = monkeypatch

    def type(self, *arguments, status=0, **options):
        """Run a command; gives its finished run, of which `status` is expected."""
        result = CliRunner().invoke(cli, ["--server", BASE, *map(str, arguments)], **options)
        assert result.exit_code == status, result.output
        return result

    def get(self, path, answer=None, **options):
        self.played.get(f"{BASE}/v1/{path}", **({"json": answer} if answer is not None else {}), **options)

    def post(self, path, answer, **options):
        self.played.post(f"{BASE}/v1/{path}", json=answer, **options)

    def takes_files(self):
        def receive(request):
            b"".join(request.body)
            return 200, {}, json.dumps({"id": "file-1"})

        self.played.add_callback("POST", f"{BASE}/v1/files", receive)

    def sent(self, path):
        """The bodies that were posted there."""
        calls = [call.request for call in self.played.calls if call.request.url.endswith(f"/v1/{path}")]
        return [json.loads(call.body) for call in calls if call.method == "POST"]


@pytest.fixture
def box(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Nothing comes back that does not answer here.
    monkeypatch.setitem(Server.__init__.__kwdefaults__, "patience_s", 0)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as played:
        health = {"service": "ollama-batch-server", "instance": "one", "version": "1", "status": "ok"}
        played.get(f"{BASE}/health", json=health | {"backends": [{"kind": "ollama", "version": "0.33.0"}]})
        yield Box(played, monkeypatch)
