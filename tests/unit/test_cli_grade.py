"""`simplerl grade` on files as users have them, whole, mistaken and damaged, and what a person is asked to judge."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simplerl.cli import grading
from simplerl.cli.main import run
from simplerl.storage.records import RunFolder
from simplerl.types import Verdict
from simplerl.verifiers import math
from simplerl.verifiers.base import done
from simplerl.verifiers.math.pool import Outcome

pytestmark = pytest.mark.unit

ROWS = [
    {"id": "first", "response": r"so \boxed{7}.", "answer": "7", "correct": True},
    {"id": 12, "response": r"\boxed{8}", "answer": "7", "correct": True},
    {"response": "I do not know", "answer": "7", "expected": "no_answer"},
    {"id": "bare", "pred": "0.5", "gold": r"\frac12", "kind": "answer", "gold_kind": "answer", "expected": True},
    {"pred": "5", "gold": r"We add: $2+3=\boxed{5}$", "kind": "answer", "gold_kind": "solution", "expected": False},
    {"id": None, "pred": "The answer is 7.", "gold": "7", "kind": "response", "expected": "policy"},
]
NO_WORKERS = ("--workers", "0")


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grade(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """stdout and stderr of a command that succeeds."""
    code = run(["grade", *map(str, arguments), *NO_WORKERS])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said of a mistake; nothing is printed as a result."""
    assert run(["grade", *map(str, arguments), *NO_WORKERS]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


class Stub(math.MathVerifier):
    """Gives the same verdict to all."""

    def __init__(self, verdict: Verdict | None = None) -> None:
        super().__init__("evaluation")
        self.verdict, self.closed = verdict, 0

    def submit_response(self, response: str, gold: str) -> Future[Verdict]:
        assert self.verdict is not None
        return done(self.verdict)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    verifier = Stub()
    monkeypatch.setattr(math, "build", lambda config: verifier)
    return verifier


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage:" in grade(capsys, "--help")[0]


# --- rows in, verdicts out --------------------------------------------------------------------------------------------


def test_every_row_gets_a_verdict_in_the_order_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sub" / "out.jsonl"
    grade(capsys, jsonl(tmp_path / "rows.jsonl", ROWS), "--out", out)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [tuple(row) for row in written] == [("id", "extracted", "verdict", "reward", "method", "ms")] * 6
    assert [(row["id"], row["extracted"], row["verdict"], row["reward"]) for row in written] == [
        ("first", "7", "correct", 1.0),
        (12, "8", "wrong", -0.5),
        (3, None, "no_answer", -1.0),
        ("bare", "0.5", "correct", 1.0),
        (5, "5", "correct", 1.0),
        (6, "7", "correct", 1.0),
    ]
    assert all(row["method"] and row["ms"] >= 0 for row in written)


def test_the_mode_of_training_wants_a_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(tmp_path / "rows.jsonl", ROWS)
    told = json.loads(grade(capsys, file, "--mode", "reward", "--json")[0])
    assert told["verdicts"] == {"correct": 3, "wrong": 1, "no_answer": 2, "error": 0}


def test_packed_files_empty_lines_and_a_byte_order_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(ROWS[0]), "", json.dumps(ROWS[2], ensure_ascii=False).replace("know", "know\u2028"), " "]
    packed, out = tmp_path / "rows.jsonl.gz", tmp_path / "out.jsonl"
    packed.write_bytes(gzip.compress(("\ufeff" + "\r\n".join(lines)).encode()))
    grade(capsys, packed, "--out", out)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["first", 3]


def test_text_that_utf_8_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "\ud800", "response": "\\boxed{\\text{a\udfff\ud83d}}", "answer": "\ud800 é"}
    out = tmp_path / "out.jsonl"
    grade(capsys, jsonl(tmp_path / "rows.jsonl", [row]), "--out", out)
    assert json.loads(out.read_text())["extracted"] == r"\text{a??}"
    grade(capsys, tmp_path / "rows.jsonl", "--audit", "--json")


def test_keys_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"response": 1, "pred": r"\boxed{8}", "output": r"\boxed{7}", "answer": "8", "target": "7"}]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    told = json.loads(grade(capsys, file, "--response-key", "output", "--answer-key", "target", "--json")[0])
    assert told["verdicts"]["correct"] == 1


def test_no_more_rows_are_held_than_wait_at_a_time(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread judges, more slowly than rows are read; nothing overtakes in the output."""
    monkeypatch.setattr(grading, "WINDOW", 8)

    def judge(number: int) -> Verdict:
        time.sleep(0.003)
        return Verdict("wrong", str(number))

    def rows() -> Iterator[grading.Row]:
        for number in range(50):
            assert number < 8 or futures[number - 8].done()
            yield grading.Row(number, str(number), "")

    with ThreadPoolExecutor(1) as threads:
        futures: list[Future[Verdict]] = []
        monkeypatch.setattr(
            stub, "submit_response", lambda text, _: futures.append(threads.submit(judge, text)) or futures[-1]
        )
        judged = [(row.id, verdict.extracted) for row, verdict in grading.judged(rows(), stub)]
    assert judged == [(n, str(n)) for n in range(50)]


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = grade(capsys, jsonl(tmp_path / "rows.jsonl", ROWS), "--json")
    told = json.loads(out)
    assert (out.count("\n"), err) == (1, "")
    assert told["rows"] == 6
    assert told["verdicts"] == {"correct": 4, "wrong": 1, "no_answer": 1, "error": 0}
    assert told["shares"] == {"correct": 4 / 6, "wrong": 1 / 6, "no_answer": 1 / 6, "error": 0.0}
    assert sum(told["methods"].values()) == 6
    # "policy" is no label.
    assert told["agreement"] == {"labelled": 5, "agree": 3, "share": 0.6, "differ": [12, 5]}
    assert told["errors"] == []
    assert told["verdicts_per_second"] == pytest.approx(6 / told["seconds"])


def test_the_summary_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = grade(capsys, jsonl(tmp_path / "rows.jsonl", ROWS))
    assert out.startswith(
        "6 rows\n  correct    4  66.7%\n  wrong      1  16.7%\n  no_answer  1  16.7%\n  error      0  0.0%\n"
    )
    assert "\n3 of 5 agree with their label (60.00%)\nthe first that do not: 12, 5\n" in out
    out, _ = grade(capsys, jsonl(tmp_path / "rows.jsonl", [{"response": "x", "answer": "7"}]))
    assert "agree" not in out


def test_times_are_of_verdicts() -> None:
    summary = grading.Summary()
    for number in range(1, 201):
        summary.add(grading.Row(number, "", ""), Verdict("wrong", method="m", seconds=number / 1000))
    told = summary.table()
    assert told["ms_mean"] == pytest.approx(100.5)
    assert told["ms_p99"] == pytest.approx(198)
    assert told["methods"] == {"m": 200}
    assert told["agreement"] is None


def test_errors_are_said_loudly(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.verdict = Verdict("error", "x", "symbolic timeout")
    rows = [{"id": f"r{n}", "response": "?", "answer": "7", "correct": False} for n in range(12)]
    out, err = grade(capsys, jsonl(tmp_path / "rows.jsonl", rows), "--json", "--out", tmp_path / "out.jsonl")
    first = ", ".join(f"r{n}" for n in range(10))
    assert err == f"error: 12 of 12 rows have no verdict (error); the first: {first}\n"
    told = json.loads(out)
    assert told["verdicts"]["error"] == 12
    # An error is not "not correct" by accident only: it agrees with a label that says so.
    assert told["agreement"]["agree"] == 12
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["reward"] == -0.5
    assert stub.closed == 1


# --- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    "line, said",
    [
        ("{oops", "is not JSON: Expecting property name"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "holds a list, not an object with keys"),
        ("{}", "has no 'response' or 'pred'; it has no keys. Say which key to read with --response-key"),
        ('{"text": "x", "gold": "7"}', "has no 'response' or 'pred'; it has text, gold."),
        ('{"pred": "x", "target": "7"}', "has no 'answer' or 'gold'; it has pred, target. Say which key to read with"),
        ('{"pred": "x", "gold": 7}', "'gold' is 7, not a string; put it in quotes, or name another key"),
        ('{"pred": null, "gold": "7"}', "'pred' is None, not a string"),
        ('{"pred": ["7"], "gold": "7"}', "'pred' is ['7'], not a string"),
        (
            '{"pred": "7", "gold": "7", "kind": "bare"}',
            "'kind' is 'bare'; it may be 'response' (the default) or 'answer'",
        ),
        (
            '{"pred": "7", "gold": "7", "gold_kind": 1}',
            "'gold_kind' is 1; it may be 'answer' (the default) or 'solution'",
        ),
    ],
    ids=range(11),
)
def test_a_line_that_cannot_be_read_is_named_and_nothing_is_half_written(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join([GOOD] * 40 + [line] + [GOOD] * 3))
    out.write_text("from before")
    error = mistake(capsys, file, "--out", out)
    assert error.startswith(f"error: {file}, line 41")
    assert said in error
    assert out.read_text() == "from before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = gzip.compress((GOOD + "\n").encode() * 50)
    for name, content, said in [
        ("latin.jsonl", '{"pred": "é"}'.encode("latin-1"), "line 1 is not UTF-8: byte 10 is 0xe9"),
        ("torn.jsonl.gz", packed[:-9], "is damaged"),
        ("flipped.jsonl.gz", packed[:20] + b"\xff\xff" + packed[22:], "is damaged"),
        ("plain.jsonl.gz", GOOD.encode(), "is damaged: Not a gzipped file"),
        ("empty.jsonl", b"\n\n", "holds no rows"),
    ]:
        (tmp_path / name).write_bytes(content)
        for extra in ((), ("--audit",)):
            error = mistake(capsys, tmp_path / name, *extra)
            assert error.startswith((f"error: {tmp_path / name} ", f"error: {tmp_path / name}, line 1 ")) and (
                said in error or "no responses" in error
            )
    assert "cannot be read: No such file" in mistake(capsys, tmp_path / "none.jsonl")
    assert "cannot be read: Is a directory" in mistake(capsys, tmp_path)


def test_a_file_or_two_answers(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), (tmp_path / "rows.jsonl", "--equal", "1", "2")):
        assert "name a file of rows, or two answers with --equal PRED GOLD" in mistake(capsys, *arguments)
    for arguments in ((tmp_path / "rows.jsonl", "--audit"), ("--equal", "1", "2")):
        assert "--out is for the verdicts on a file" in mistake(capsys, *arguments, "--out", tmp_path / "out")
    assert stub.closed == 0
    mistake(capsys, tmp_path / "none.jsonl")
    assert stub.closed == 1


# --- two answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, gold, label", [("-3", "-3.0", "correct"), ("--x", "5", "wrong"), ("", "5", "no_answer")]
)
def test_two_answers(answer: str, gold: str, label: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert grade(capsys, "--equal", answer, gold)[0].startswith(f"{label} (")
    told = json.loads(grade(capsys, "--equal", answer, gold, "--json")[0])
    assert list(told) == ["verdict", "method", "extracted", "ms"]
    assert told["verdict"] == label


# --- the audit --------------------------------------------------------------------------------------------------------

LOOSE = [
    {"id": "r1", "pred": "0.33", "gold": "1/3", "kind": "answer"},
    {"id": "r2", "pred": "[a,b]", "gold": "(a,b)", "kind": "answer"},
    {"id": "r3", "pred": r"\boxed{7}, no, \boxed{8}", "gold": "7"},
    {"id": "r4", "pred": "0.33", "gold": r"it is \boxed{1/3}", "kind": "answer", "gold_kind": "solution"},
    {"id": "r5", "pred": "[a,b]", "gold": "(a,b)", "kind": "answer"},
    {"id": "r6", "pred": "7", "gold": "7", "kind": "answer"},
    {"id": "r7", "pred": "8", "gold": "7", "kind": "answer"},
    {"id": "r8", "pred": "", "gold": "7"},
]


def test_an_audit_groups_what_a_looser_comparison_calls_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(grade(capsys, jsonl(tmp_path / "rows.jsonl", LOOSE), "--audit", "--json")[0])
    assert told["verdicts"] == {"correct": 1, "wrong": 6, "no_answer": 1, "error": 0}
    assert (told["findings"], told["kinds"]) == (5, {"numeric": 2, "edit": 2, "other box": 1})
    assert (told["accuracy"], told["accuracy_at_most"]) == (1 / 8, 6 / 8)
    keys = ("kind", "rule", "extracted", "gold", "count", "first")
    assert [tuple(pair[key] for key in keys) for pair in told["pairs"]] == [
        ("numeric", "within 1 %", "0.33", "1/3", 2, "r1"),
        ("edit", "decoration dropped", "[a,b]", "(a,b)", 2, "r2"),
        ("other box", "another box", "8", "7", 1, "r3"),
    ]


def test_an_audit_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = grade(capsys, jsonl(tmp_path / "rows.jsonl", LOOSE), "--audit")[0].splitlines()
    assert lines[0] == "1 correct, 6 wrong, 1 no_answer, 0 error"
    assert lines[1].startswith("5 would be right by a looser comparison; ")
    assert lines[1].endswith("the accuracy would be 75.00% instead of 12.50%")
    cells = [line.split() for line in lines[2:]]
    assert cells[0] == ["kind", "rule", "count", "extracted", "gold", "first"]
    # rich would take [a,b] for markup.
    assert cells[1] == ["edit", "decoration", "dropped", "2", "[a,b]", "(a,b)", "r2"]


def test_an_audit_asks_the_symbolic_path(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def equal(answer: str, gold: str) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(Outcome("equal", 0.0))
        return future

    stub.verdict, stub.pool = Verdict("wrong", "x"), SimpleNamespace(submit=equal)
    rows = jsonl(tmp_path / "rows.jsonl", [{"pred": "x", "gold": "y"}])
    assert json.loads(grade(capsys, rows, "--audit", "--json")[0])["kinds"] == {"math-verify": 1}


def test_an_audit_of_a_run_takes_the_verdicts_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"step": 3, "problem_id": "p/1", "sample_index": 2, "answer": "1/3", "text": "", "extracted": "0.33"}
    rows = [{**row, "verdict": label} for label in ("wrong", "correct", "error")]
    RunFolder(tmp_path).write_rollouts(3, rows)
    told = json.loads(grade(capsys, tmp_path, "--audit", "--json")[0])
    assert told["verdicts"] == {"correct": 1, "wrong": 1, "no_answer": 0, "error": 1}
    assert [(pair["kind"], pair["first"]) for pair in told["pairs"]] == [("numeric", "step 3, p/1, sample 2")]
    assert "holds no responses" in mistake(capsys, tmp_path / "rollouts", "--audit")
