"""What each command sends and says. tests/client/test_run.py has their truth, against a real server."""

import json
import re
import time

import pytest
import requests
from click.testing import CliRunner

from batchserver.version import read_version
from client.commands import cli
from tests.client.conftest import BASE, batch, progress
from tests.conftest import jsonl, line


def test_list_shows_the_newest_batches_as_columns(box):
    page = {"data": [batch(metadata={"input_file": "a.jsonl"}), batch("batch_2", "in_progress", total=7)]}
    box.get("batches", page | {"has_more": False, "last_id": "batch_2"})
    lines = box.type("list").output.splitlines()
    assert lines[0].split() == ["id", "status", "lines", "failed", "model", "created", "window", "ends", "file"]
    assert lines[1].startswith("batch_1")
    assert lines[1].endswith("a.jsonl")
    assert "1/7" in lines[2]


def test_list_by_status_reads_on_until_enough_are_found(box):
    box.get("batches", {"data": [batch()], "has_more": True, "last_id": "batch_1"})
    box.get("batches", {"data": [batch("batch_2", "failed")], "has_more": True, "last_id": "batch_2"})
    found = json.loads(box.type("list", "--status", "failed", "--limit", 1, "--json").output)
    assert [each["id"] for each in found["data"]] == ["batch_2"]


def test_a_name_that_would_steer_the_terminal_is_made_harmless(box):
    page = {"data": [batch(metadata={"input_file": "a\x1b[2J\nb"})], "has_more": False}
    box.get("batches", page)
    assert "\x1b" not in box.type("list").output


STEERING = "a\x1b]0;x\x07\x1b[2J\x9b31m\rb"


def harmless(said):
    return not set(said) & set("\x1b\x07\x9b\r")


@pytest.mark.parametrize("command", ["show", "watch", "errors", "list"])
def test_no_message_of_a_server_steers_the_terminal(box, command):
    error = {"code": "invalid", "message": STEERING, "line": 3, "param": None}
    failed = batch(status="failed", errors={"data": [error]})
    box.get("batches/batch_1", failed)
    box.get("batches", {"error": {"message": STEERING}}, status=500)
    box.get("batches/batch_1/progress", progress("failed", waiting_for=STEERING, warnings=[{"message": STEERING}]))
    reason = {"code": STEERING, "message": STEERING, "count": 1, "first": [STEERING]}
    box.get("batches/batch_1/reasons", {"object": "list", "data": [reason]})
    arguments = ["list"] if command == "list" else [command, "batch_1"]
    said = box.type(*arguments, status=command == "list").output
    assert harmless(said)
    assert "[2J" in said


@pytest.fixture
def narrow(box):
    """A terminal of 80 columns; gives what it shows of some output, without colours and movements."""
    box.monkeypatch.setattr("client.rendering.is_terminal", lambda: True)
    box.monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal then
    box.monkeypatch.setenv("TERM", "xterm")
    box.monkeypatch.setenv("COLUMNS", "80")
    return lambda said: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).replace("\r", "\n").splitlines()


def test_a_list_is_readable_in_80_columns(box, narrow):
    long = batch(
        "batch_" + "0" * 32,
        "in_progress",
        completed=123456,
        total=170000,
        model="gemma3:12b-it-qat",
        metadata={"input_file": "profiles.csv"},
    )
    box.get("batches", {"data": [long], "has_more": False})
    heads, row, below = narrow(box.type("list").output)
    assert heads.split() == ["id", "status", "lines", "failed"]
    assert row.split() == [long["id"], "in_progress", "123456/170000", "0"]
    assert below.startswith("    model: gemma3:12b-it-qat, created: ")
    assert below.endswith(", file: profiles.csv")


def test_watching_is_readable_in_80_columns(box, narrow):
    now = time.time()
    far = progress(
        completed=160000,
        failed=123456,
        total=987654,
        tokens_per_second=1234.0,
        lines_per_minute=12.3,
        estimated_end=now + 180000,
    )
    for each in (far, progress("finalizing", completed=1), progress("completed", completed=1)):
        box.get("batches/batch_1/progress", each)
    box.get("batches/batch_1", batch())
    shown = narrow(box.type("watch", "batch_1").output)
    bar = next(number for number, text in enumerate(shown) if "283,456/987,654 lines" in text)
    assert shown[bar].startswith("━━━")
    assert shown[bar].rstrip().endswith("123,456 failed")
    assert shown[bar + 1].startswith("1,234 tokens/s, 12.3 lines/min, ends about ")
    assert shown[bar + 1].rstrip().endswith("(in 2 d 2 h)")
    assert "writing the result files" in "\n".join(shown)


def test_no_batch_is_no_error(box):
    box.get("batches", {"data": [], "has_more": False})
    assert box.type("list").output == "There is no batch yet.\n"
    assert "There is no batch at" in box.type("show", status=1).output


@pytest.mark.parametrize("named", ["file-1", "../health", "batch_1/cancel", "batch_1?x", ""])
def test_what_is_no_id_is_never_sent(box, named):
    assert "Expected one such as batch_abc123" in box.type("cancel", named, status=1).output
    assert [call.request.url for call in box.played.calls] == [f"{BASE}/health"]


def test_show_tells_what_it_waits_for_and_when_it_ends(box):
    box.get("batches", {"data": [batch(status="in_progress")], "has_more": False})
    box.get("batches/batch_1", batch(status="in_progress", retry_of="batch_0"))
    waits = progress(waiting_for="Quiet hours.", total=9, estimated_end=4_000_000_000, lines_per_minute=3.0)
    box.get("batches/batch_1/progress", waits)
    said = box.type("show").output
    for part in ("in_progress", "0/9 lines, 0 failed", "Quiet hours.", "3.0 lines/min, ends about", "batch_0"):
        assert part in said
    both = json.loads(box.type("show", "batch_1", "--json").output)
    assert both["progress"]["waiting_for"] == "Quiet hours."


def test_show_names_the_mistakes_of_a_file(box):
    error = {"code": "invalid", "message": "Bad line.", "line": 3, "param": None}
    box.get("batches/batch_1", batch(status="failed", errors={"data": [error, error | {"line": 5}]}))
    box.get("batches/batch_1/progress", progress("failed"))
    assert "  line 3 and 1 more: Bad line." in box.type("show", "batch_1").output


def test_watch_tells_each_reason_once_and_ends_with_the_batch(box):
    for waiting in (None, "Quiet hours.", "Quiet hours.", None, "Quiet hours."):
        box.get("batches/batch_1/progress", progress(waiting_for=waiting))
    box.get("batches/batch_1/progress", progress("completed", completed=1))
    box.get("batches/batch_1", batch(output_file_id="file-1"))
    said = box.type("watch", "batch_1").output
    assert said.count("Waiting: Quiet hours.") == 2
    assert "batch_1 is completed: 1 of 1 lines answered." in said
    assert "results batch_1 -o FILE" in said


def test_the_forecast_is_told_once_with_the_window_and_the_disk(box, monkeypatch):
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    first = progress(
        estimated_end=now + 9 * 3600,
        expires_at=now + 8 * 3600,
        disk_needed_bytes=1_500_000_000,
        disk_free_bytes=20_000_000,
        estimated_from="The speed of the last 49 lines, of batch_0 too: those may be longer or shorter.",
    )
    for each in (progress(), first, first | {"estimated_end": now + 10 * 3600}, progress("completed", completed=1)):
        box.get("batches/batch_1/progress", each)
    box.get("batches/batch_1", batch())
    said = box.type("watch", "batch_1").output
    assert said.count("Forecast: ") == 1
    assert "(in 9 h); its window ends " in said
    assert ", WHICH IS TOO EARLY; takes about 1.5 GB of disk, where 20 MB are free. The speed of the last 49" in said


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"estimated_from": "Not known before 5 lines for m are finished."},
        {"estimated_end": 1_700_000_000, "expires_at": 1_700_000_000},  # over already
    ],
)
def test_what_is_no_forecast_is_not_told(box, others):
    for each in (progress(**others), progress("completed", completed=1)):
        box.get("batches/batch_1/progress", each)
    box.get("batches/batch_1", batch())
    assert "Forecast" not in box.type("watch", "batch_1").output


def test_an_older_server_tells_no_window_and_no_disk(box):
    soon = time.time() + 7200
    for each in (progress(estimated_end=soon), progress("completed", completed=1)):
        box.get("batches/batch_1/progress", each)
    box.get("batches/batch_1", batch())
    said = box.type("watch", "batch_1").output
    assert "Forecast: ends about" in said
    assert "window" not in said.partition("Forecast")[2].partition("\n")[0]


def test_watch_waits_for_a_server_that_restarts(box):
    for _ in range(3):
        box.get("batches/batch_1/progress", body=requests.ConnectionError())
    box.get("batches/batch_1/progress", progress("completed", completed=1))
    box.get("batches/batch_1", batch())
    said = box.type("watch", "batch_1").output
    assert said.count("does not answer. It is asked again until it does.") == 1
    assert "is completed" in said


@pytest.mark.parametrize(
    ("over", "status"),
    [(batch(), 0), (batch(failed=1), 1), (batch(status="expired"), 1), (batch(status="cancelled"), 1)],
)
def test_the_exit_status_of_watch_says_whether_each_line_was_answered(box, over, status):
    box.get("batches/batch_1/progress", progress(over["status"]))
    box.get("batches/batch_1", over)
    box.type("watch", "batch_1", "--exit-status", status=status)
    box.type("watch", "batch_1", status=0)
    assert json.loads(box.type("watch", "batch_1", "--json", status=0).stdout) == over


def test_ctrl_c_while_watching_says_how_to_come_back(box):

    def interrupt(request):
        raise KeyboardInterrupt

    box.played.add_callback("GET", f"{BASE}/v1/batches/batch_1/progress", interrupt)
    said = box.type("watch", "batch_1", status=130).output
    assert "batch_1 goes on" in said
    assert "watch batch_1" in said
    assert "cancel batch_1" in said


def test_results_of_a_finished_batch_are_its_file(box, tmp_path):
    box.get("batches/batch_1", batch(output_file_id="file-1"))
    box.get("files/file-1/content", body=b'{"custom_id": "a"}\n')
    assert box.type("results", "batch_1").stdout == '{"custom_id": "a"}\n'
    target = tmp_path / "out.jsonl"
    box.type("results", "batch_1", "-o", target)
    assert target.read_text() == '{"custom_id": "a"}\n'
    target.write_text("mine")
    assert "is there already" in box.type("results", "batch_1", "-o", target, status=1).output
    assert target.read_text() == "mine"
    box.type("results", "batch_1", "-o", target, "--force")
    assert target.read_text() == '{"custom_id": "a"}\n'


def test_results_follow_a_running_batch_from_where_they_stopped(box):
    box.get("batches/batch_1", batch(status="in_progress"))
    url = "batches/batch_1/output"
    box.get(url, body=b"1\n2\n", headers={"X-Incomplete": "true", "X-Last-Line": "2"})
    box.get(url, body=b"", headers={"X-Incomplete": "true", "X-Last-Line": "2"})
    box.get(url, body=b"3\n", headers={"X-Incomplete": "false", "X-Last-Line": "3"})
    assert box.type("results", "batch_1", "--follow").stdout == "1\n2\n3\n"
    asked = [call.request.params["after"] for call in box.played.calls if url in call.request.url]
    assert asked == ["0", "2", "2"]


def test_results_of_a_running_batch_say_that_they_are_incomplete(box):
    box.get("batches/batch_1", batch(status="in_progress"))
    box.get("batches/batch_1/output", body=b"1\n", headers={"X-Incomplete": "true", "X-Last-Line": "1"})
    result = box.type("results", "batch_1")
    assert result.stdout == "1\n"
    assert "Incomplete: batch_1 goes on." in result.stderr


def test_merged_results_are_those_of_the_whole_family(box):
    """Whichever of them is named; a batch of another family is left out."""
    family = [
        batch("batch_c", output_file_id="file-c", retry_of="batch_b"),
        batch("batch_x", output_file_id="file-x", retry_of="batch_y"),
        batch("batch_b", output_file_id="file-b", retry_of="batch_a"),
        batch("batch_a", output_file_id="file-a"),
    ]
    box.get("batches", {"data": family, "has_more": False})
    for each in family:
        box.get(f"batches/{each['id']}", each)
        box.get(f"files/{each['output_file_id']}/content", body=each["id"].encode() + b"\n")
    for named in ("batch_a", "batch_b", "batch_c"):
        assert box.type("results", named, "--merged").stdout == "batch_a\nbatch_b\nbatch_c\n"


def test_results_are_not_merged_before_the_retry_has_ended(box):
    retry = batch("batch_b", "in_progress", retry_of="batch_1")
    box.get("batches", {"data": [retry], "has_more": False})
    box.get("batches/batch_1", batch(output_file_id="file-1"))
    assert "batch_b has not ended" in box.type("results", "batch_1", "--merged", status=1).output


def test_errors_are_summed_up_with_what_helps(box):
    box.get("batches/batch_1", batch(error_file_id="file-2"))
    reason = {"code": "context_length_exceeded", "message": "Too long.", "count": 48, "first": ["a", "b"]}
    box.get("batches/batch_1/reasons", {"object": "list", "data": [reason]})
    said = box.type("errors", "batch_1").output
    assert "48 × context_length_exceeded: Too long. (first: a, b)" in said
    assert "retry batch_1 --model MODEL" in said
    assert json.loads(box.type("errors", "batch_1", "--json").stdout)["data"] == [reason]


def test_errors_of_a_server_that_does_not_count_them_are_counted_here(box):
    box.get("batches/batch_1", batch(error_file_id="file-2"))
    box.get("batches/batch_1/reasons", {"error": {"message": "No such address."}}, status=404)
    line = {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "Late."}}
    box.get("files/file-2/content", body=json.dumps(line).encode() + b"\n")
    assert "1 × batch_expired: Late. (first: a)" in box.type("errors", "batch_1").output
    assert json.loads(box.type("errors", "batch_1", "--lines").stdout) == line


def test_cancel_sends_what_it_says(box):
    box.post("batches/batch_1/cancel", batch(status="cancelling"))
    assert box.type("cancel", "batch_1").output == "batch_1 is cancelling.\n"


@pytest.mark.parametrize(("answer", "is_sent"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_cancel_asks_in_a_terminal(box, answer, is_sent):
    box.monkeypatch.setattr("client.commands.change.is_asked", lambda: True)
    box.get("batches/batch_1/progress", progress(total=9))
    box.post("batches/batch_1/cancel", batch(status="cancelling"))
    result = box.type("cancel", "batch_1", status=0 if is_sent else 1, input=answer)
    assert "Cancel batch_1 (0/9 lines, 0 failed)?" in result.output
    assert bool(box.sent("batches/batch_1/cancel")) is is_sent


@pytest.mark.parametrize("what", ["pause", "resume"])
def test_pause_and_resume_take_batches_or_all(box, what):
    box.post(f"batches/batch_1/{what}", batch())
    box.post(f"batches/{what}", {"object": "batches.pause", "paused": what == "pause"})
    assert box.type(what, "batch_1").output.endswith("ed batch_1.\n" if what == "resume" else "d batch_1.\n")
    assert "all batches" in box.type(what, "--all").output
    assert "Name the batches" in box.type(what, status=2).output
    assert "Name the batches" in box.type(what, "batch_1", "--all", status=2).output


def test_extend_moves_the_end_of_the_window(box):
    box.post("batches/batch_1/extend", batch(status="in_progress"))
    assert "The window of batch_1 ends" in box.type("extend", "batch_1", "7d").output
    assert box.sent("batches/batch_1/extend") == [{"completion_window": "7d"}]


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ([], {"errors": "all", "completion_window": "7d"}),
        (["--errors", "expired", "--window", "14d"], {"errors": "expired", "completion_window": "14d"}),
        (
            ["--code", "a", "--code", "b", "--model", "m"],
            {"errors": "all", "codes": ["a", "b"], "model": "m", "completion_window": "7d"},
        ),
    ],
)
def test_retry_makes_a_batch_of_the_lines_that_failed(box, options, body):
    box.post("batches/batch_1/retry", batch("batch_2", "validating", retry_of="batch_1"))
    said = box.type("retry", "batch_1", *options).output
    assert box.sent("batches/batch_1/retry") == [body]
    assert "watch batch_2" in said
    assert "results batch_2 --merged" in said


@pytest.mark.parametrize(("level", "number"), [("high", 1), ("normal", 0), ("low", -1), ("5", 5), ("-3", -3)])
def test_priority_takes_a_word_or_a_number(box, level, number):
    box.post("batches/batch_1/priority", batch())
    box.type("priority", "batch_1", "--", level)
    assert box.sent("batches/batch_1/priority") == [{"priority": number}]


def test_a_priority_that_is_none_is_refused(box):
    assert "expected high, normal, low" in box.type("priority", "batch_1", "urgent", status=2).output


@pytest.mark.parametrize("command", ["list", "show", "watch", "results", "errors"])
def test_a_server_that_does_not_answer_is_named_at_once(box, command):
    box.played.replace("GET", f"{BASE}/health", body=requests.ConnectionError())
    assert f"No batch server answers at {BASE}" in box.type(command, status=1).output


@pytest.mark.parametrize("arguments", [["pause", "--all"], ["cancel", "last"], ["extend", "last", "7d"]])
def test_the_server_of_another_is_not_changed_unless_it_is_named(box, arguments):
    box.monkeypatch.setattr("client.checkout.Checkout.address", BASE)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "is not your own" in result.output
    assert not [call for call in box.played.calls if call.request.method == "POST"]


@pytest.mark.parametrize("command", [["list"], ["show"], ["errors"], ["watch", "batch_1"], ["check", "FILE"]])
def test_the_key_is_kept_from_a_server_that_is_neither_named_nor_ours(box, tmp_path, command):
    box.monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    box.monkeypatch.setattr("client.checkout.Checkout.address", BASE)
    (tmp_path / "in.jsonl").write_bytes(jsonl([line("a")]))
    for path in ("batches", "batches/batch_1/progress", "models"):
        box.get(path, {"error": {"message": "Incorrect API key."}}, status=401)
    result = CliRunner().invoke(cli, [str(tmp_path / "in.jsonl") if word == "FILE" else word for word in command])
    assert result.exit_code == 1
    assert "no key was sent: this server's data is in none of your own directories. To send OPENAI_API_KEY to it, " in (
        result.output
    )
    assert f"name it: --server {BASE}" in result.output
    assert len(box.played.calls) == 2
    assert not any("Authorization" in call.request.headers for call in box.played.calls)


@pytest.mark.parametrize("is_named", [True, False])
def test_the_key_is_sent_to_a_server_that_is_named_or_ours_but_not_for_its_health(box, tmp_path, is_named):
    box.monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    if not is_named:
        box.monkeypatch.setattr("client.checkout.Checkout.address", BASE)
        box.monkeypatch.setenv("DATA_DIR", str(tmp_path))
        (tmp_path / "instance_id").write_text("one")
    box.get("batches", {"data": [], "has_more": False})
    result = CliRunner().invoke(cli, ["list", *(["--server", BASE] if is_named else [])])
    assert result.exit_code == 0, result.output
    sent = [call.request.headers.get("Authorization") for call in box.played.calls]
    assert sent == [None, "Bearer sk-secret"]


def test_it_tells_its_version(box):
    assert box.type("--version").output == f"ollama-batch {read_version()}\n"


def test_options_may_stand_before_the_command(box):
    box.get("batches", {"data": [], "has_more": False})
    assert json.loads(box.type("--json", "list").output) == {"object": "list", "data": []}


@pytest.mark.usefixtures("processes")  # bash is asked for its version
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(box, shell):
    assert "_OLLAMA_BATCH_COMPLETE" in box.type("completion", shell).output
