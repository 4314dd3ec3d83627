"""`run` typed again: what is sent, and what is not."""

import hashlib
import json

import pytest

from client.memory import MOST_REMEMBERED, Memory
from tests.client.conftest import batch, progress

LINE = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}) + "\n"
ANSWER = json.dumps({"custom_id": "a", "response": {"body": {"choices": [{"message": {"content": "yes"}}]}}}) + "\n"
DIGEST = hashlib.sha256(LINE.encode()).hexdigest()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(LINE)
    return path


def plays(box, *, listed=(), over=None):
    """A server that has these batches, takes a file, and has answered `over` when it is asked."""
    box.get("batches", {"data": list(listed), "has_more": False})
    box.takes_files()
    made = over or batch(output_file_id="file-2")
    box.post("batches", made | {"status": "validating"})
    box.get("batches/batch_1/progress", progress(made["status"], completed=1))
    box.get("batches/batch_1", made)
    box.get("files/file-2", {"id": "file-2", "bytes": len(ANSWER)})
    box.get("files/file-2/content", body=ANSWER.encode())


def test_a_batch_carries_what_its_file_is_known_by(box, path, tmp_path):
    plays(box)
    said = box.type("run", path).output
    [asked] = box.sent("batches")
    assert asked["metadata"] == {"input_sha256": DIGEST, "input_file": "in.jsonl"}
    assert asked["completion_window"] == "7d"
    assert "→ yes" in said
    assert (tmp_path / "in.results.jsonl").read_text() == ANSWER


def test_the_same_command_again_sends_nothing(box, path):
    plays(box)
    box.type("run", path)
    box.type("run", path)
    assert len(box.sent("batches")) == 1
    assert "Nothing is asked twice" in box.type("run", path).output


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
def test_without_memory_the_running_batch_is_found_by_its_metadata(box, path, status):
    others = [batch("batch_9", metadata=None), batch("batch_8", metadata={"input_sha256": "another"})]
    plays(box, listed=[*others, batch("batch_1", status, metadata={"input_sha256": DIGEST})])
    assert f"made for this file before, is {status}" in box.type("run", path).output
    assert box.sent("batches") == []


def test_another_window_or_priority_is_no_reason_to_ask_again(box, path):
    plays(box, listed=[batch(metadata={"input_sha256": DIGEST}, output_file_id="file-2")])
    box.type("run", path, "--window", "14d", "--priority", "high")
    assert box.sent("batches") == []


def test_again_asks_everything_again_and_is_what_is_known_from_then_on(box, path, tmp_path):
    plays(box, listed=[batch("batch_0", metadata={"input_sha256": DIGEST})])
    box.type("run", path, "--again")
    assert len(box.sent("batches")) == 1
    assert "Batch batch_1, made" in box.type("run", path).output
    # Its results are there.
    assert "is there already" in box.type("run", path, "--again", status=1).output
    box.type("run", path, "--again", "--force")
    assert len(box.sent("batches")) == 2


def test_a_file_that_changed_is_another(box, path):
    plays(box)
    box.type("run", path)
    path.write_text(LINE + LINE.replace('"a"', '"b"'))
    box.type("run", path, "--force")
    assert len(box.sent("batches")) == 2


def test_a_batch_that_the_server_has_no_more_is_made_again(box, path, tmp_path):
    """The memory is checked against the server: its database may be another by now."""
    Memory(tmp_path / "xdg" / "ollama-batch", "one").remember(DIGEST, "batch_gone")
    box.get("batches/batch_gone", {"error": {"message": "No batch."}}, status=404)
    plays(box)
    box.type("run", path)
    assert len(box.sent("batches")) == 1


def test_a_batch_that_failed_in_validation_asked_nothing_so_it_is_made_again(box, path):
    plays(box, listed=[batch("batch_0", "failed", metadata={"input_sha256": DIGEST})])
    box.type("run", path)
    assert len(box.sent("batches")) == 1


def test_a_retry_of_some_lines_is_not_taken_for_the_whole_file(box, path):
    known = {"input_sha256": DIGEST}
    retry = batch("batch_2", metadata=known, retry_of="batch_1")
    plays(box, listed=[retry, batch("batch_1", metadata=known, output_file_id="file-2")])
    assert "Batch batch_1, made for this file before" in box.type("run", path).output


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_batch_that_ended_early_gives_its_answers_and_says_how_to_ask_the_rest(box, path, tmp_path, status):
    line = {"custom_id": "b", "response": None, "error": {"code": f"batch_{status}", "message": "Late."}}
    over = batch(status=status, output_file_id="file-2", error_file_id="file-3", metadata={"input_sha256": DIGEST})
    plays(box, listed=[over], over=over)
    content = json.dumps(line).encode() + b"\n"
    box.get("files/file-3", {"id": "file-3", "bytes": len(content)})
    box.get("files/file-3/content", body=content)
    said = box.type("run", path, status=1).output
    assert "retry batch_1" in said
    assert box.sent("batches") == []
    assert (tmp_path / "in.results.errors.jsonl").read_bytes() == content


@pytest.mark.parametrize("state", ["running", "new"])
def test_results_in_the_way_are_refused_before_anything_is_sent(box, path, tmp_path, state):
    known = {"running": [batch("batch_1", "in_progress", metadata={"input_sha256": DIGEST})], "new": []}
    plays(box, listed=known[state])
    (tmp_path / "in.results.jsonl").write_text("mine")
    assert "is there already" in box.type("run", path, status=1).output
    assert not [call for call in box.played.calls if call.request.method == "POST"]
    assert (tmp_path / "in.results.jsonl").read_text() == "mine"


def test_ctrl_c_says_what_goes_on_and_how_to_come_back(box, path):
    def interrupt(request):
        raise KeyboardInterrupt

    plays(box)
    box.played.remove("GET", "http://box:4080/v1/batches/batch_1/progress")
    box.played.add_callback("GET", "http://box:4080/v1/batches/batch_1/progress", interrupt)
    said = box.type("run", path, status=130).output
    assert "Interrupted. batch_1 is kept, with every finished line. It goes on at http://box:4080." in said
    assert "watch batch_1" in said
    assert len(box.sent("batches")) == 1


def test_detached_it_does_not_wait(box, path, tmp_path):
    plays(box)
    assert "watch batch_1" in box.type("run", path, "--detach").output
    assert not (tmp_path / "in.results.jsonl").exists()


def test_json_alone_is_printed_for_a_program(box, path):
    plays(box)
    assert json.loads(box.type("run", path, "--json").stdout)["id"] == "batch_1"


# The state file


@pytest.mark.parametrize("content", ["", "{broken", "[]", "null", '"text"'])
def test_a_damaged_state_file_is_an_empty_one(tmp_path, content):
    memory = Memory(tmp_path, "one")
    memory.path.write_text(content)
    assert memory.batch_of(DIGEST) is None
    memory.remember(DIGEST, "batch_1")
    assert memory.batch_of(DIGEST) == "batch_1"


def test_each_server_has_its_own(tmp_path):
    Memory(tmp_path, "one").remember(DIGEST, "batch_1")
    assert Memory(tmp_path, "two").batch_of(DIGEST) is None


def test_the_oldest_is_forgotten_first(tmp_path):
    memory = Memory(tmp_path, "one")
    memory.path.write_text(json.dumps({f"d{number}": "batch" for number in range(MOST_REMEMBERED)}))
    memory.remember("d0", "batch_new")
    memory.remember(DIGEST, "batch_1")
    assert memory.batch_of("d1") is None
    assert memory.batch_of("d0") == "batch_new"


def test_a_state_that_cannot_be_kept_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "state", "one")
    with memory.locked():
        memory.remember(DIGEST, "batch_1")
    assert memory.batch_of(DIGEST) is None
