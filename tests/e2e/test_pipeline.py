"""A whole pipeline on a tiny model, as a user runs it: done once, skipped when run again, the same after kills."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from run_processes import same_weights, server

from simplerl.cli.main import run as command

pytestmark = pytest.mark.e2e

VERIFIER = """
from simplerl.types import Verdict
from simplerl.verifiers.base import Verifier


class Parity(Verifier):
    def verify(self, problem, rollout):
        return Verdict("wrong" if len(rollout.text) % 2 else "correct", str(len(rollout.text)))


def build(config):
    return Parity()
"""
TRAIN = {
    "data": {"source": "arithmetic"},
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 16},
    "train": {"steps": 2, "minibatch_size": 8},
    "actor": {"learning_rate": 1e-3},
    "critic": {"learning_rate": 1e-3},
    "checkpoint": {"every": 1},
}
DISTILL = {
    "kind": "distill",
    "data": {"source": "arithmetic", "limit": 24},
    "sampling": {"samples_per_problem": 6, "max_tokens": 64},
    "filter": {"per_problem": 6, "loops": True, "code": True, "other_letters": 1.0},
}
SFT = {
    "kind": "sft",
    "data": {"source": {"name": "file", "keys": {"question": "problem", "solution": "response"}}},
    "train": {"steps": 2, "batch_size": 4},
    "actor": {"learning_rate": 1e-3},
    "checkpoint": {"every": 1},
}
SUITE = {"template": "chat", "benchmarks": ["arithmetic-test"], "max_tokens": 4}
MODELS = ("zero", "sft", "long")


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    """Every kind of stage; what a stage makes is what a later one takes."""
    (tmp_path / "parity.py").write_text(VERIFIER)
    for name, table in (("train", TRAIN), ("distill", DISTILL), ("sft", SFT), ("suite", SUITE)):
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(table))

    def stage(run: str, recipe: str, **settings: Any) -> dict[str, Any]:
        verifier = {"verifier": {"path": str(tmp_path / "parity.py")}}
        return {"run": run, "recipe": str(tmp_path / f"{recipe}.toml"), "set": verifier | settings}

    def evaluation(model: object, **more: Any) -> dict[str, Any]:
        return {"run": "eval", "model": str(model), "suite": str(tmp_path / "suite.toml"), **more}

    stages = {
        "zero": stage("train", "train", model={"path": str(tiny_model)}),
        "distill": stage("distill", "distill", teacher={"name": "local", "model": "{zero}"}),
        "sft": stage("sft", "sft", model={"path": "{zero}"}, data={"source": {"data_path": "{distill}"}}),
        "long": stage("train", "train", model={"path": "{sft}"}),
        "before": evaluation(tiny_model, label="base", trained=False),
        "after": evaluation("{long}"),
        "report": {"run": "report", "runs": ["zero", "long"]},
    }
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps({"kind": "pipeline", "seed": 3, "stages": stages}))
    return path


def arguments(recipe: Path, folder: Path, *more: str) -> list[str]:
    return ["pipeline", str(recipe), "--run-dir", str(folder), "--plain", *more]


def in_child(recipe: Path, folder: Path) -> None:
    import torch

    os.environ["SIMPLERL_CACHE"] = str(folder.with_suffix(".cache"))
    os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    sys.exit(command(arguments(recipe, folder)))


@pytest.fixture(scope="module")
def processes() -> Any:
    return server()


def finish(processes: Any, recipe: Path, folder: Path) -> None:
    child = processes.Process(target=in_child, args=(recipe, folder))
    child.start()
    child.join(300)
    assert child.exitcode == 0, folder.with_suffix(".log").read_text()[-3000:]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(processes: Any, recipe: Path, folder: Path, is_there: Callable[[], bool]) -> None:
    child = processes.Process(target=in_child, args=(recipe, folder))
    child.start()
    deadline = time.monotonic() + 120
    while not is_there():
        assert child.is_alive(), folder.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def unfinished(folder: Path) -> list[str]:
    state = json.loads((folder / "state.json").read_text())
    return [name for name, known in state.items() if not known["done"]]


def contents(folder: Path) -> dict[str, Any]:
    """All that the pipeline has made but weights, times and names of places."""
    kept = [json.loads(line) for line in (folder / "distill/kept.jsonl").read_text().splitlines()]
    results = [json.loads((folder / name / "results.json").read_text()) for name in ("before", "after")]
    return {
        "kept": [{key: value for key, value in row.items() if key != "recipe_sha256"} for row in kept],
        "results": results,
        "table": (folder / "report/table.md").read_text(),
        "stages": [
            (name, known["fingerprint"], known["done"])
            for name, known in json.loads((folder / "state.json").read_text()).items()
        ],
    }


def test_a_pipeline_gives_the_same_after_kills_and_is_skipped_when_it_is_done(
    processes: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finish(processes, recipe, whole)
    made = contents(whole)
    assert made["kept"] and not any(same_weights(whole / a, whole / b) for a, b in (("zero", "sft"), ("sft", "long")))

    moments: dict[str, Callable[[], bool]] = {
        "zero": lambda: lines(torn / "zero/metrics.jsonl") > 0,
        "distill": lambda: lines(torn / "distill/responses.jsonl") > 40,
        "sft": lambda: (torn / "sft/checkpoints/step-000001").exists(),
        "after": lambda: lines(torn / "after/responses/arithmetic-test.jsonl") > 100,
    }
    hit = []
    for is_there in moments.values():
        kill_when(processes, recipe, torn, is_there)
        hit += unfinished(torn)
    # The short ones may have come to their end before the kill arrived.
    assert hit[-1] == "after" and len(hit) > 1, hit
    finish(processes, recipe, torn)
    assert contents(torn) == made
    assert all(same_weights(whole / name, torn / name) for name in MODELS)

    moved = tmp_path / "moved"
    torn.rename(moved)
    assert command(arguments(recipe, moved)) == 0
    said = capsys.readouterr().out
    assert said.count(": skipped, done and unchanged (") == 7 and "after - base" in said
    assert not (moved / "superseded").exists()
