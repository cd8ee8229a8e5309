"""A second verifiable domain through every command: problems whose answers are tests, and programs as responses."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import tomli_w

from simplerl.cli.main import run
from simplerl.engines._torch_engine import TorchEngine
from simplerl.report.live import LivePage
from simplerl.storage.records import RunFolder
from simplerl.types import Request, Rollout
from simplerl.verifiers.python_tests import isolation_fault

pytestmark = pytest.mark.e2e

FIXTURE = Path(__file__).parents[1] / "fixtures" / "python_problems.jsonl"
PROBLEMS = {row["id"]: row for row in map(json.loads, FIXTURE.read_text(encoding="utf-8").splitlines())}
RIGHT = {
    "run-length": "from itertools import groupby\ndef run_lengths(text):\n"
    "    return [(letter, len(list(run))) for letter, run in groupby(text)]\n",
    "second-largest": "def second_largest(numbers):\n    return ([None] + sorted(set(numbers)))[-2]\n",
    "collatz": "def collatz_steps(n):\n    return 0 if n == 1 else 1 + collatz_steps([n // 2, 3 * n + 1][n % 2])\n",
    "move-zeros": "def move_zeros(numbers):\n    numbers.sort(key=lambda number: number == 0)\n",
    "account": "class Account:\n    balance = 0\n    def deposit(self, amount): self.balance += amount\n"
    "    def withdraw(self, amount):\n        if amount > self.balance: raise ValueError\n"
    "        self.balance -= amount\n",
}
WRONG = "def second_largest(numbers):\n    return sorted(numbers)[-2]\n"
FIRST = "second-largest"
QUESTION, TESTS = PROBLEMS[FIRST]["question"], PROBLEMS[FIRST]["answer"]


def response(problem: str, sample: int) -> str:
    """The first sample is right, the second one has no program, the third one is wrong."""
    if sample == 1:
        return "I do not know."
    return f"Let us see.\n```python\n{RIGHT[problem] if sample == 0 else WRONG}```\n"


@pytest.fixture(autouse=True)
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine's tokens and log-probs with texts of this file; everything else is as users have it."""
    generate = TorchEngine.submit

    def submit(self: TorchEngine, requests: Sequence[Request]) -> Iterator[Rollout]:
        for rollout in generate(self, requests):
            problem = next(name for name, row in PROBLEMS.items() if row["question"] == rollout.prompt.problem.question)
            text = response(problem, int(rollout.request_id.rpartition("/")[2]))
            yield replace(rollout, turns=(replace(rollout.turns[0], text=text),))

    monkeypatch.setattr(TorchEngine, "submit", submit)
    monkeypatch.setenv("SIMPLERL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def settings() -> list[str]:
    """The verifier's settings on the command line. Most containers have no namespaces."""
    isolation = ["--set", "verifier.isolation=limits"] if isolation_fault() else []
    return ["--set", "verifier.allow_running_code=true", *isolation]


def recipe(tiny_model: Path, folder: Path, **verifier: Any) -> Path:
    table = {
        "model": {"path": str(tiny_model)},
        "data": {"source": {"name": "file", "data_path": str(FIXTURE), "keys": {"id": "id"}}},
        "rollout": {"prompts_per_step": 5, "samples_per_prompt": 3, "max_tokens": 4},
        "verifier": {"name": "python-tests"} | verifier,
        "algorithm": {"name": "grpo"},
        "train": {"steps": 2, "minibatch_size": 15},
        "eval": {"every": 1, "sets": [{"name": "programs", "path": str(FIXTURE), "limit": 2}]},
    }
    path = folder / "programs.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """stdout of a command that succeeds."""
    capsys.readouterr()
    code = run([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """stderr of a command that is refused."""
    capsys.readouterr()
    assert run([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_programs_are_trained_on_evaluated_sampled_and_reported(
    tiny_model: Path, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mine = tmp_path / "run", recipe(tiny_model, tmp_path)
    refused = mistake(capsys, "train", mine, "--run-dir", folder, "--plain")
    assert "set verifier.allow_running_code=true to allow it" in refused
    output(capsys, "train", mine, *settings, "--run-dir", folder, "--plain")

    stored = RunFolder(folder)
    assert [row["verdict/correct"] for row in stored.read_metrics()] == [pytest.approx(1 / 3)] * 2
    assert [row["verdict/no_answer"] for row in stored.read_metrics()] == [pytest.approx(1 / 3)] * 2
    rows = parquet.read_table(folder / "rollouts" / "step-000001.parquet").to_pylist()
    found = {
        (row["problem_id"], row["sample_index"]): (row["verdict"], row["method"], row["extracted"]) for row in rows
    }
    assert len(found) == 15
    for problem in PROBLEMS:
        assert found[problem, 0] == ("correct", "tests passed", RIGHT[problem])
        assert found[problem, 1] == ("no_answer", "no Python block", None)
        method = "assertion failed" if problem == FIRST else "raised NameError"
        assert found[problem, 2] == ("wrong", method, WRONG)
    # In training the held-out problems are answered once each.
    assert [(row["set"], row["n"], row["accuracy"]) for row in stored.read_evals()] == [("programs", 2, 1.0)] * 3

    page = (folder / "report.html").read_text(encoding="utf-8")
    watched = gzip.decompress(LivePage(folder).page()).decode()
    assert "what python-tests judged is left out" in watched and "assertion failed" in watched
    assert "assertion failed" in page and "no Python block" in page
    assert "what python-tests judged is left out" in page and "by a looser comparison" not in page
    assert "No box<" not in page and "No boxed answer" not in page and "without a boxed answer" not in page

    capsys.readouterr()
    told = output(capsys, "sample", folder, QUESTION, "--gold", TESTS, "--n", 3, "--max-tokens", 4)
    heads = [line.partition(": ")[2].rpartition(", truncated")[0] for line in told.splitlines() if line[:4] == "--- "]
    assert heads == [
        "answer of 2 lines, correct, 4 tokens",
        "no answer (no Python block), no_answer, 4 tokens",
        "answer of 2 lines, wrong, 4 tokens",
    ]
    evaluate(folder, tmp_path / "eval", settings, capsys)


def evaluate(model: Path, out: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", model, "--suite", "arithmetic", "--template", "chat", "--benchmarks", FIXTURE]
    command += ["--n", 3, "--temperature", 1, "--max-tokens", 4, "--out", out]
    results = json.loads(output(capsys, *command, "--verifier", "python-tests", *settings, "--json"))
    found = results["benchmarks"]["python_problems"]
    assert (found["problems"], found["responses"]) == (5, 15)
    assert found["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["pass_at"]["3"]["value"] == 1.0
    # The right program and the wrong one have a vote each, and the one given first wins.
    assert found["maj_at"]["3"]["value"] == 1.0
    plan = tomllib.loads((out / "eval.toml").read_text(encoding="utf-8"))
    assert plan["verifier"] == "python-tests" and plan["verifier_settings"]["allow_running_code"] is True
    refused = mistake(capsys, *command)
    assert "verifier: stored 'python-tests', given 'math'" in refused
    assert "set verifier.allow_running_code=true" in mistake(
        capsys, *command, "--verifier", "python-tests", "--out", out / "x"
    )
    assert not (out / "x").exists()


def test_recorded_programs_are_graded(tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": f"{problem}-{sample}", "question": each["question"], "answer": each["answer"]}
        | {"response": response(problem, sample), "correct": sample == 0}
        for problem, each in PROBLEMS.items()
        for sample in range(3)
    ]
    file = tmp_path / "recorded.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mine = ["--verifier", "python-tests", *settings]

    told = json.loads(output(capsys, "grade", file, *mine, "--out", tmp_path / "verdicts.jsonl", "--json"))
    assert told["verdicts"] == {"correct": 5, "wrong": 5, "no_answer": 5, "error": 0}
    assert told["agreement"]["agree"] == 15
    first, second, *_ = map(json.loads, (tmp_path / "verdicts.jsonl").read_text(encoding="utf-8").splitlines())
    assert (first["id"], first["verdict"], first["extracted"]) == ("run-length-0", "correct", RIGHT["run-length"])
    assert (second["verdict"], second["reward"]) == ("no_answer", -1.0)

    out = tmp_path / "eval"
    results = json.loads(output(capsys, "eval", "--from-responses", file, *mine, "--out", out, "--json"))
    found = results["benchmarks"]["recorded"]
    assert (results["plan"]["verifier"], found["problems"], found["samples"]) == ("python-tests", 5, 3)
    assert found["accuracy"]["value"] == pytest.approx(1 / 3)

    for options in (["--mode", "reward"], ["--audit"], ["--workers", "2"]):
        refused = mistake(capsys, "grade", file, *mine, *options)
        assert f"{options[0]}: for the verifier math; python-tests is set with --set verifier.KEY=VALUE" in refused
    assert "--equal: for the verifier math" in mistake(capsys, "grade", "--equal", "1", "2", *mine)
    assert "only settings of the verifier are set here" in mistake(capsys, "grade", file, "--set", "train.steps=1")
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"response": "x = 1", "answer": "assert x", "kind": "answer"}), encoding="utf-8")
    assert 'row 1: "kind": "answer" is for the verifier math' in mistake(capsys, "grade", bare, *mine)
