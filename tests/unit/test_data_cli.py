"""`simplerl data ...`: every command, and that nothing but its output goes to stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from simplerl.cli.data import app
from simplerl.data.export import export, git_blob_id
from simplerl.data.sources.math_lvl3to5 import ORIGINAL_BLOB
from simplerl.errors import DataError
from simplerl.types import Problem

needs_data = pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="SIMPLERL_DATA, the published sets, is unset")
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The commands on a machine that has no published set and an empty cache."""
    monkeypatch.delenv("SIMPLERL_DATA", raising=False)
    monkeypatch.setenv("SIMPLERL_CACHE", str(tmp_path / "cache"))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return invoke


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"question": "Compute 1+1.", "answer": 2, "level": 1, "subject": "Sums"}\n{"question": "?", "answer": ""}\n'
    )
    return path


def test_list(run: Run) -> None:
    rows = json.loads(run("list", "--json").stdout)
    (aime,) = (row for row in rows if row["name"] == "aime24")
    assert (aime["kind"], aime["problems"]) == ("benchmark", 30)
    where = {(row["name"], row["kind"]): row["where"] for row in rows}
    assert where["math500", "benchmark"] == "hub: HuggingFaceH4/MATH-500"
    assert where["mawps", "benchmark"] == "missing"
    assert where["arithmetic", "source"] == where["arithmetic-hard", "benchmark"] == "generated"
    assert where["gsm8k-math1", "source"] == "hub: openai/gsm8k, hub: nlile/hendrycks-MATH-benchmark"
    assert "math-lvl3to5" in run("list").stdout


def test_show(run: Run, mine: Path) -> None:
    result = run("show", "file", "--n", "1", "--set", f"data_path={mine}")
    assert result.stdout == ("file: 1 problems\n\nmine.jsonl/0 (Sums, level 1)\nCompute 1+1.\nanswer: 2\n")
    assert result.stderr == "file: dropped 1 without a question or an answer: mine.jsonl/1\n"
    (row,) = json.loads(run("show", "file", "--n", "1", "--set", f"data_path={mine}", "--json").stdout)
    assert (row["id"], row["answer"], row["level"]) == ("mine.jsonl/0", "2", 1)
    assert json.loads(run("show", "arithmetic-unseen", "--json").stdout)[2]["id"] == "arithmetic-unseen/2"


def test_show_of_a_set_that_is_nowhere(run: Run) -> None:
    error = run("show", "mawps").exception
    assert isinstance(error, DataError) and "mawps (test) not found" in str(error)


def test_prepare_of_what_is_generated(run: Run) -> None:
    assert "nothing to fetch" in run("prepare", "arithmetic").stdout
    assert json.loads(run("prepare", "arithmetic-test", "--json").stdout) == []


def test_overlap_names_what_it_could_not_check(run: Run, mine: Path) -> None:
    result = run("overlap", "file", "--set", f"data_path={mine}", "--json")
    report = json.loads(result.stdout)
    assert set(report["benchmarks"]) == {"arithmetic-test", "arithmetic-hard", "arithmetic-unseen"}
    assert len(report["unchecked"]) == 16 and result.stderr.count("unchecked: ") == 16
    assert report["counts"]["any"] == {"exact": 0, "format-insensitive": 0, "13-gram": 0}


def test_overlap_finds_a_benchmarks_problem(run: Run, mine: Path) -> None:
    question = json.loads(run("show", "arithmetic-hard", "--json").stdout)[0]["question"]
    mine.write_text(json.dumps({"question": question.upper() + " ", "answer": "1"}))
    result = run("overlap", "file", "--set", f"data_path={mine}")
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["benchmark", "exact", "format-insensitive", "13-gram"],
        ["arithmetic-hard", "0", "1", "0"],
        ["any", "0", "1", "0"],
    ]


def test_export_writes_the_file_and_nothing_else(run: Run, mine: Path, tmp_path: Path) -> None:
    arguments = ("export", "file", "--set", f"data_path={mine}", "--format", "openrlhf")
    rows = json.loads(run(*arguments).stdout_bytes)
    assert rows[0]["input"].endswith("<|im_start|>user\nCompute 1+1.<|im_end|>\n<|im_start|>assistant")
    assert [row["target"] for row in rows] == ["2", ""], "rows as published, fit for training or not"
    assert run(*arguments, "--out", str(tmp_path / "out.json")).stdout_bytes == b""
    assert (tmp_path / "out.json").read_bytes() == run(*arguments).stdout_bytes


def test_an_export_that_is_not_the_original_is_refused() -> None:
    content = export([Problem("a", "q", "1")], "openrlhf")
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    with pytest.raises(DataError, match=f"blob id is {git_blob_id(content)}, should be {'0' * 40}"):
        export([Problem("a", "q", "1")], "openrlhf", "0" * 40)
    with pytest.raises(DataError, match="no export format 'csv'; available: openrlhf"):
        export([], "csv")


@needs_data
def test_the_original_training_file_byte_for_byte() -> None:
    program = "from simplerl.cli.data import app; app()"
    command = [sys.executable, "-c", program, "export", "math-lvl3to5", "--format", "openrlhf"]
    written = subprocess.run(command, capture_output=True, check=True)
    named = subprocess.run(["git", "hash-object", "--stdin"], input=written.stdout, capture_output=True, check=True)
    assert named.stdout.decode().strip() == ORIGINAL_BLOB
    assert written.stderr == b""


@needs_data
def test_prepare_keeps_a_published_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLERL_CACHE", str(tmp_path))
    invoke = CliRunner().invoke
    records = json.loads(invoke(app, ["prepare", "gsm8k", "--json"]).stdout)
    assert [(r["kind"], r["rows"], r["pinned"]) for r in records] == [("train", 7473, True), ("test", 1319, True)]
    invoke(app, ["prepare", "math-lvl3to5"])
    monkeypatch.delenv("SIMPLERL_DATA")
    exported = invoke(app, ["export", "math-lvl3to5"]).stdout_bytes
    assert git_blob_id(exported) == ORIGINAL_BLOB
    assert "as published" in invoke(app, ["prepare", "gsm8k"]).stdout
