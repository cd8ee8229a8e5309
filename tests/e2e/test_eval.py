"""`simplerl eval` as a user runs it: on a tiny model, killed and continued, on recorded responses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from simplerl.cli.main import run

pytestmark = pytest.mark.e2e

SETTINGS = ["--suite", "arithmetic", "--benchmarks", "arithmetic-test,arithmetic-hard"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLERL_CACHE", str(tmp_path / "cache"))


def evaluate(*arguments: object) -> None:
    assert run(["eval", *map(str, arguments)]) == 0


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def responses(folder: Path, part: str) -> list[dict[str, Any]]:
    return parquet.read_table(folder / "responses" / part / "all.parquet").to_pylist()


def test_a_model_is_evaluated_and_again_gives_the_same_table(tiny_model: Path, tmp_path: Path) -> None:
    few = [tiny_model, *SETTINGS, "--limit", 6, "--n", 4, "--temperature", 1, "--max-tokens", 12]
    evaluate(*few, "--out", tmp_path / "a", "--no-cache")
    evaluate(*few, "--out", tmp_path / "b", "--no-cache")
    assert results(tmp_path / "a") == results(tmp_path / "b")
    found = results(tmp_path / "a")["benchmarks"]["arithmetic-test"]
    assert (found["problems"], found["responses"], found["metric"]) == (6, 24, "avg@4")
    assert set(found["pass_at"]) == {"1", "2", "4"}
    rows = responses(tmp_path / "a", "arithmetic-test")
    assert len({(row["problem_id"], row["sample_index"]) for row in rows}) == 24
    assert all(row["prompt"] and row["verdict"] and row["finish_reason"] for row in rows)


def test_the_cache_answers_what_was_asked_before(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    few = [tiny_model, *SETTINGS, "--limit", 5, "--max-tokens", 8]
    evaluate(*few, "--out", tmp_path / "a")
    from simplerl.engines._torch_engine import TorchEngine

    def refuse(*_: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(TorchEngine, "submit", refuse)
    evaluate(*few, "--out", tmp_path / "b")
    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_another_plan_does_not_go_into_the_same_folder(tiny_model: Path, tmp_path: Path, capsys) -> None:
    few = ["eval", str(tiny_model), *SETTINGS, "--limit", "2", "--max-tokens", "4", "--out", str(tmp_path / "a")]
    assert run(few) == 0
    assert run([*few, "--seed", "1"]) == 2
    assert "holds another evaluation:\n  seed: stored 0, given 1" in capsys.readouterr().err


def test_killed_in_the_middle_it_goes_on_and_nothing_is_generated_twice(tiny_model: Path, tmp_path: Path) -> None:
    few = [
        str(tiny_model),
        *SETTINGS,
        "--limit",
        "60",
        "--n",
        "8",
        "--temperature",
        "1",
        "--max-tokens",
        "64",
        "--no-cache",
    ]
    evaluate(*few, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from simplerl.cli.main import main; main()", "eval", *few, "--out", str(out)]
    journal = out / "responses" / "arithmetic-test.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 40) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    assert 40 <= len(kept) < 480
    evaluate(*few, "--out", out)
    finished = {(row["problem_id"], row["sample_index"]): row["text"] for row in responses(out, "arithmetic-test")}
    assert len(finished) == 480
    assert all(finished[row["problem_id"], row["sample_index"]] == row["text"] for row in kept)
    assert results(out) == results(tmp_path / "whole")


def test_recorded_responses(tmp_path: Path) -> None:
    rows = [
        {"problem": "1+1", "response": "\\boxed{2}", "answer": "2"},
        {"problem": "1+1", "response": "The answer is 3.", "answer": "2"},
        {"problem": "half", "response": "\\boxed{0.5}", "answer": "\\frac12"},
        {"problem": "half", "response": "I do not know", "answer": "\\frac12"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    evaluate("--from-responses", file, "--out", tmp_path / "out")
    found = results(tmp_path / "out")["benchmarks"]["mine"]
    assert (found["problems"], found["samples"], found["accuracy"]["value"]) == (2, 2, 0.5)
    assert found["pass_at"]["2"]["value"] == 1.0
    assert found["shares"]["no_answer"] == 0.25


@pytest.mark.skipif(not os.environ.get("SIMPLERL_DATA"), reason="SIMPLERL_DATA does not name the folder of data sets")
def test_the_published_suite_runs_on_a_random_model(tiny_model: Path, tmp_path: Path) -> None:
    evaluate(tiny_model, "--suite", "simplerl-v0", "--limit", 2, "--max-tokens", 4, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert len(found["benchmarks"]) == 8
    assert {one["problems"] for one in found["benchmarks"].values()} == {2}
    assert found["average"]["over"] == ["aime24", "math500", "amc23", "minerva_math", "olympiadbench"]
