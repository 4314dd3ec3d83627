"""`csv`: rows to requests and answers to columns, against a server that `responses` plays."""

import csv
import io
import json
import re

import pytest

from client.table import Table, described
from client.trouble import Trouble
from tests.client.conftest import BASE, batch, progress


class Answering:
    """A server whose model answers each prompt by `answer`; a str is an answer, a dict the error of its line."""

    def __init__(self, box, answer):
        self.lines = []  # of each batch
        self.names = []  # of the files that were sent
        self.files = {}
        self.batches = []
        self.answer = answer
        self.reports = []  # of the progress of a batch that is not over
        for method, path, call in (
            ("POST", "files", self.upload),
            ("POST", "batches", self.create),
            ("GET", r"batches/batch_\d+/progress", self.progress),
            ("GET", r"batches/batch_\d+", self.batch),
            ("GET", r"files/[a-z]+-\d+/content", self.content),
            ("GET", r"batches/batch_\d+/(output|errors)", self.finished),
            ("GET", "batches", self.list),
        ):
            box.played.add_callback(method, re.compile(rf"{BASE}/v1/{path}(\?|$)"), call)

    def upload(self, request):
        body = b"".join(request.body)
        self.names.append(re.search(rb'filename="([^"]*)"', body)[1].decode())
        content = body.partition(b'filename="')[2].partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        self.lines.append([json.loads(line) for line in content.splitlines()])
        return 200, {}, json.dumps({"id": f"file-{len(self.lines)}"})

    def create(self, request):
        good, bad, number = [], [], len(self.lines)
        for line in self.lines[-1]:
            answer = self.answer(line["body"]["messages"][-1]["content"])
            if isinstance(answer, dict):
                bad.append({"custom_id": line["custom_id"], "response": None, "error": answer})
            else:
                choice = {"message": {"content": answer}, "finish_reason": "stop"}
                good.append(
                    {"custom_id": line["custom_id"], "response": {"body": {"choices": [choice]}}, "error": None}
                )
        for name, lines in (("good", good), ("bad", bad)):
            self.files[f"{name}-{number}"] = "".join(json.dumps(line) + "\n" for line in lines)
        asked = json.loads(request.body)
        names = {
            "output_file_id": f"good-{number}" if good else None,
            "error_file_id": f"bad-{number}" if bad else None,
        }
        counts = {"completed": len(good), "failed": len(bad), "total": len(good) + len(bad)}
        self.batches.append(batch(f"batch_{number}", metadata=asked["metadata"], **counts, **names))
        return 200, {}, json.dumps(self.batches[-1] | ({"status": "in_progress"} if self.reports else {}))

    def _named(self, request):
        return self.batches[int(re.search(r"batch_(\d+)", request.url)[1]) - 1]

    def progress(self, request):
        if self.reports:
            self.reports.pop()()
            return 200, {}, json.dumps(progress("in_progress", lines_per_minute=60.0))
        return 200, {}, json.dumps(progress("completed", lines_per_minute=60.0))

    def batch(self, request):
        return 200, {}, json.dumps(self._named(request))

    def finished(self, request):
        """Every second line, in another order than that of the input; a later call has no more."""
        name, after = (
            {"output": "good", "errors": "bad"}[request.url.split("?")[0].split("/")[-1]],
            request.params["after"],
        )
        lines = self.files[f"{name}-{self._named(request)['id'].removeprefix('batch_')}"].splitlines(keepends=True)
        headers = {"X-Incomplete": "true", "X-Last-Line": str(len(lines))}
        return 200, headers, "".join(lines[::-2]) if after == "0" else ""

    def content(self, request):
        return 200, {}, self.files[request.url.split("/")[-2]]

    def list(self, request):
        return 200, {}, json.dumps({"data": self.batches[::-1], "has_more": False})


@pytest.fixture
def scored(box, tmp_path):
    """Run `csv` on a text; gives the rows of the output, what was said, and the server."""

    def scored(text, *options, prompt="{{ name }}", answer=str.upper, status=0, schema=None, typed=None):
        server = scored.server = getattr(scored, "server", None) or Answering(box, answer)
        source, output = tmp_path / "in.csv", tmp_path / "out.csv"
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "prompt.txt").write_text(prompt)
        if schema is not None:
            (tmp_path / "schema.json").write_text(json.dumps(schema))
            options = (*options, "--schema", tmp_path / "schema.json")
        arguments = ("csv", source, "--prompt", tmp_path / "prompt.txt", "-o", output, *options)
        said = box.type(*arguments, status=status, input=typed).output
        rows = list(csv.reader(io.StringIO(output.read_text("utf-8-sig"), newline=""))) if output.exists() else None
        return rows, said, server

    scored.output = tmp_path / "out.csv"
    scored.box = box
    return scored


def test_answers_come_back_as_a_column_in_the_order_of_the_rows(scored):
    late = {"code": "batch_expired", "message": "Late."}
    rows, said, server = scored("name\na\nb\nc\n", answer=lambda text: late if text == "b" else text.upper())
    assert rows == [
        ["name", "answer", "error", "finish_reason"],
        ["a", "A", "", "stop"],
        ["b", "", "batch_expired: Late.", ""],
        ["c", "C", "", "stop"],
    ]
    assert "3 rows are asked" in said
    assert "1 without an answer" in said
    assert [line["custom_id"] for line in server.lines[0]] == ["row-1", "row-2", "row-3"]


def test_each_property_of_the_schema_is_a_column_and_what_does_not_fit_is_an_error(scored):
    schema = {"type": "object", "properties": {"score": {"type": "integer"}, "why": {}}, "required": ["score"]}
    answers = {
        "good": '{"score": 3, "why": ["a", 1]}',
        "text": "I think 3",
        "wrong": '{"score": "three"}',
        "null": '{"score": 1, "why": null}',
        "none": "",
    }
    rows, _, server = scored("name\n" + "\n".join(answers) + "\n", schema=schema, answer=answers.get)
    assert rows[0] == ["name", "score", "why", "error", "finish_reason"]
    assert rows[1] == ["good", "3", '["a", 1]', "", "stop"]
    assert rows[2][3] == "the answer is no JSON: I think 3"
    assert rows[3][3].startswith("the answer does not fit the schema ('three' is not of type 'integer')")
    assert rows[4] == ["null", "1", "", "", "stop"]
    assert "no JSON" in rows[5][3]
    format = server.lines[0][0]["body"]["response_format"]
    assert format == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_a_reference_of_the_schema_fetches_nothing(scored):
    schema = {"properties": {"a": {"$ref": "http://elsewhere.example/schema"}}}
    rows, _, _ = scored("name\nx\n", schema=schema, answer=lambda text: '{"a": 1}')
    assert "refers to http://elsewhere.example/schema" in rows[1][2]


def test_system_model_and_columns_by_any_name(scored, tmp_path):
    (tmp_path / "system.txt").write_text("Be {{ row['How to be'] }}.\n")
    _, _, server = scored(
        "name,How to be\nAnn,brief\n",
        "--system",
        tmp_path / "system.txt",
        "--model",
        "m",
        prompt="Hi {{ name|upper }}\n",
    )
    assert server.lines[0][0]["body"] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi ANN"}],
    }


def test_what_is_not_asked_is_counted_and_what_is_not_meant_is_left_out(scored):
    text = "name,age\nAnn,31\n  ,40\nBob,7\nCid,99\n"
    rows, said, _ = scored(text, "--where", "age|int > 30", prompt="{{ name }}")
    assert [row[0].strip() for row in rows[1:]] == ["Ann", "", "Cid"]
    assert rows[2][3] == "skipped: the prompt is empty"
    assert "2 rows are asked; 1 with an empty prompt are skipped." in said


def test_a_column_of_the_input_that_is_called_as_ours_stays(scored):
    rows, _, _ = scored("name,answer,error\na,b,c\n")
    assert rows == [
        ["name", "answer", "error", "answer_answer", "answer_error", "finish_reason"],
        ["a", "b", "c", "A", "", "stop"],
    ]


@pytest.mark.parametrize(
    ("columns", "properties", "heads"),
    [
        (["name"], ["error"], ["error", "answer_error", "finish_reason"]),
        (["name"], ["finish_reason", "error"], ["finish_reason", "error", "answer_error", "answer_finish_reason"]),
        (["name"], ["error", "answer_error"], ["error", "answer_error", "answer_answer_error", "finish_reason"]),
        (["name", "error"], ["error"], ["answer_error", "answer_answer_error", "finish_reason"]),
        (["name", "x"], ["x", "answer_x"], ["answer_answer_x", "answer_x", "error", "finish_reason"]),
        (["name", "answer_x", "x"], ["x"], ["answer_answer_x", "error", "finish_reason"]),
    ],
)
def test_a_property_that_is_called_as_a_column_of_ours_or_of_the_table_keeps_its_cells(
    scored, columns, properties, heads
):
    schema = {"type": "object", "properties": {key: {} for key in properties}, "required": properties}
    values = [f"v{number}" for number in range(len(properties))]
    good = json.dumps(dict(zip(properties, values, strict=True)))
    rest = ",c" * (len(columns) - 1)
    text = f"{','.join(columns)}\ngood{rest}\nbad{rest}\n"
    rows, said, _ = scored(text, schema=schema, answer=lambda text: good if text == "good" else "no JSON")
    given = ["c"] * (len(columns) - 1)
    assert rows[0] == [*columns, *heads]
    assert rows[1] == ["good", *given, *values, "", "stop"]
    assert rows[2] == ["bad", *given, *("" for _ in values), "the answer is no JSON: no JSON", "stop"]
    assert f"see the column {heads[-2]})" in " ".join(said.split())


def test_a_batch_of_a_table_carries_its_name(scored):
    _, _, server = scored("name\na\n")
    assert server.names == ["in.csv.requests.jsonl"]


def test_rows_are_known_by_a_column(scored):
    _, _, server = scored("name,key\na,k1\nb,k2\n", "--id", "key")
    assert [line["custom_id"] for line in server.lines[0]] == ["k1", "k2"]


@pytest.mark.parametrize(
    ("text", "options", "prompt", "said"),
    [
        ("name,key\na,1\nb,1\n", ["--id", "key"], "{{ name }}", "Rows 1 and 2 both have '1' in 'key'"),
        ("name,key\na,1\nb, \n", ["--id", "key"], "{{ name }}", "Row 2 has nothing in 'key'"),
        ("name\na\n", ["--id", "key"], "{{ name }}", "--id names the column 'key'. There are: name."),
        ("name\na\n", [], "{{ title }}", "names the column 'title'. There are: name."),
        ("name\na\n", ["--where", "age > 3"], "{{ name }}", "--where names the column 'age'"),
        ("name\na\n", ["--where", "name >"], "{{ name }}", "--where, line 1"),
        ("name\na\n", ["--where", "name|int / 0"], "{{ name }}", "The template fails for row 1: division by zero"),
        ("name\na\n", [], "{% if %}", "prompt.txt, line 1"),
        (
            "name\na\n",
            [],
            "{{ name.__class__.mro() }}",
            "The template fails for row 1: access to attribute '__class__'",
        ),
        ("name\na\n", [], "{{ row['other'] }}", "The template fails for row 1"),
        ("name\na\n", ["--id", "row"], "{{ name }}", "--id names the column 'row'. There are: name."),
        ("name\n\n", [], "{{ name }}", "in.csv has no rows, only the names of its columns."),
        ("name\na\n", ["--where", "name == 'b'"], "{{ name }}", "There are 1 that --where leaves out."),
        ("name\na\n", [], " ", "There are 1 with an empty prompt."),
        ("", [], "x", "has no names of columns"),
        ("a,a\n1,2\n", [], "x", "more than one column named 'a'"),
        ("a,b\n1,2\n3\n", [], "{{ a }}", "Row 2 of"),
        ('a,b\n1,"2\n', ["--delimiter", ","], "{{ a }}", "is no CSV"),
        ("name\na\n", ["--encoding", "klingon"], "x", "Name its encoding with --encoding"),
        ("name\na\n", ["--window", "soon"], "x", "expected a number of minutes, hours or days"),
        ("name\na\n", ["--delimiter", ";;"], "x", "expected one character"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(scored, box, text, options, prompt, said):
    box.monkeypatch.setenv("COLUMNS", "200")
    is_usage = said.startswith("expected")
    _, told, server = scored(text, *options, prompt=prompt, status=2 if is_usage else 1)
    assert said in told
    assert server.lines == []


def test_the_same_command_again_asks_nothing_and_changes_nothing(scored):
    first, _, server = scored("name\na\nb\n")
    assert scored("name\na\nb\n")[0] == first
    assert len(server.lines) == 1
    # Another output of the same input has the same answers.
    _, said, _ = scored("name\na\nc\n", status=1)
    assert "is there already" in said
    assert len(server.lines) == 1


def test_the_rows_that_are_answered_so_far_stand_beside_the_output(scored, monkeypatch, tmp_path):
    monkeypatch.setattr("client.scores.EVERY_S", 0.0)
    monkeypatch.setattr("client.scores.PAUSE_FOR_EACH_S", 0.0)
    part, seen = tmp_path / "out.csv.part", []

    def look():
        seen.append(part.read_text() if part.exists() else None)

    late = {"code": "batch_expired", "message": "Late."}
    text = "name\n" + "".join(f"{letter}\n" for letter in "abcdefgh")
    server = Answering(scored.box, lambda letter: late if letter in "gh" else letter.upper())
    scored.server, server.reports = server, [look, look, look]
    rows, _, _ = scored(text)
    # Of the good lines a to f every second, of the bad ones the last.
    so_far = "name,answer,error,finish_reason\nb,B,,stop\nd,D,,stop\nf,F,,stop\nh,,batch_expired: Late.,\n"
    assert seen == [None, so_far, so_far]
    assert [row[0] for row in rows[1:]] == list("abcdefgh")
    assert not part.exists()


def test_the_rows_of_the_trial_stand_there_too(scored, monkeypatch, tmp_path):
    monkeypatch.setattr("client.scores.EVERY_S", 0.0)
    monkeypatch.setattr("client.scores.PAUSE_FOR_EACH_S", 0.0)
    seen = []
    scored.server = server = Answering(scored.box, str.upper)

    def confirm(*_, **__):
        server.reports = [lambda: seen.append((tmp_path / "out.csv.part").read_text()), lambda: None]
        return True

    monkeypatch.setattr("click.confirm", confirm)
    scored("name\na\nb\nc\nd\ne\n", "--limit", 2)
    # Of the trial all, of the others every second.
    assert [line.partition(",")[0] for line in seen[0].splitlines()] == ["name", "a", "b", "c", "e"]


def test_ctrl_c_leaves_what_is_answered_so_far_and_the_same_command_goes_on(scored, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    scored.server = server = Answering(scored.box, str.upper)
    server.reports = [interrupt]
    rows, said, _ = scored("name\na\nb\nc\n", status=130)
    assert rows is None
    assert f"Writing the rows that are answered so far to {tmp_path}/out.csv.part…" in said
    assert (tmp_path / "out.csv.part").read_text().splitlines()[1:] == ["a,A,,stop", "c,C,,stop"]
    rows, _, _ = scored("name\na\nb\nc\n")
    assert [row[1] for row in rows[1:]] == ["A", "B", "C"]
    assert len(server.lines) == 1
    assert not (tmp_path / "out.csv.part").exists()


def test_answers_of_a_retry_are_taken_into_the_table(scored):
    late = {"code": "batch_expired", "message": "Late."}
    text = "name\na\nb\nc\n"
    rows, said, server = scored(text, answer=lambda name: late if name in "bc" else name.upper())
    assert "retry batch_1, and then the same command with --force" in " ".join(said.split())
    # What the retry answered: b; c failed again, for another reason.
    line = {"custom_id": "row-2", "response": {"body": {"choices": [{"message": {"content": "B"}}]}}, "error": None}
    server.files["good-2"] = json.dumps(line) + "\n"
    failure = {"code": "request_timeout", "message": "Slow."}
    server.files["bad-2"] = json.dumps({"custom_id": "row-3", "response": None, "error": failure}) + "\n"
    retry = batch("batch_2", retry_of="batch_1", output_file_id="good-2", error_file_id="bad-2")
    server.batches.append(retry)
    rows, said, _ = scored(text, "--force")
    assert [row[1:3] for row in rows[1:]] == [["A", ""], ["B", ""], ["", "request_timeout: Slow."]]
    assert "3 rows asked, 1 without an answer" in said
    server.batches[-1] = retry | {"status": "in_progress", "output_file_id": None, "error_file_id": None}
    rows, said, _ = scored(text, "--force")
    assert [row[1] for row in rows[1:]] == ["A", "", ""]
    assert "batch_2 still asks some rows again" in said
    assert len(server.lines) == 1


def test_a_trial_tells_how_long_all_rows_take_and_asks(scored):
    text = "name\n" + "".join(f"n{number}\n" for number in range(1200))
    (scored.output.parent / "out.csv.part").write_text("of a trial that took minutes")
    rows, said, server = scored(text, "--limit", 20, typed="n\n")
    assert rows is None
    assert not (scored.output.parent / "out.csv.part").exists()
    assert "row-1 → answer: N0" in said
    assert "At 60.0 rows a minute the other 1,180 rows take 19 min 40 s." in said
    assert [len(lines) for lines in server.lines] == [20]
    # Going on later asks the other rows alone, and gives all of them.
    rows, _, _ = scored(text, "--limit", 20, "--yes")
    assert [len(lines) for lines in server.lines] == [20, 1180]
    assert [row[:2] for row in rows[1:]] == [[f"n{number}", f"N{number}"] for number in range(1200)]


def test_a_trial_warns_of_a_window_that_is_too_short(scored):
    text = "name\n" + "n\n" * 100
    _, said, _ = scored(text, "--limit", 2, "--window", "1m", typed="n\n")
    assert "longer than the completion window of 1m" in said


# What a table looks like


@pytest.mark.parametrize(
    ("content", "encoding", "delimiter"),
    [
        (b"a,b\n1,2\n", "utf-8", ","),
        (b"a;b\n1,5;2,5\n", "utf-8", ";"),
        (b"a\tb\n1,2\t3\n", "utf-8", "\t"),
        (b"a|b\r\n1|2\r\n", "utf-8", "|"),
        (b"\xef\xbb\xbfa,b\n1,2\n", "utf-8-sig", ","),
        ("a,b\n1,é\n".encode("utf-16"), "utf-16", ","),
        ("a;b\nGrün;Ärger über Öl\n".encode("cp1252"), "cp1252", ";"),
        ("a,b\n日本語,テスト\n".encode(), "utf-8", ","),
    ],
)
def test_encoding_and_delimiter_are_found_and_said(tmp_path, content, encoding, delimiter):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table = Table.of(path)
    assert (table.encoding, table.delimiter, table.columns) == (encoding, delimiter, ["a", "b"])
    assert len(list(table.rows())) == 1
    assert "columns a, b" in described(table)


def test_line_ends_and_quotes_in_cells_stay_as_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\r\n"x\r\ny","say ""hi"", twice"\r\n')
    assert list(Table.of(path).rows()) == [(1, {"a": "x\r\ny", "b": 'say "hi", twice'})]


def test_a_cell_may_be_long(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "x" * 300_000 + ",y\n")
    assert len(next(Table.of(path).rows())[1]["a"]) == 300_000


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(Trouble, match="cannot be read: No such file"):
        Table.of(tmp_path / "none.csv")
