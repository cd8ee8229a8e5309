"""A service that stops ends a run with a checkpoint; resumed later, the run has the numbers of an uninterrupted one."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet
import pytest
from http_service import Reply, Service
from safetensors.torch import load_file

from simplerl import http
from simplerl.config import validate_recipe
from simplerl.errors import RemoteError
from simplerl.storage.records import RunFolder
from simplerl.train import run as runs

pytestmark = pytest.mark.e2e

EVALUATED, SAMPLED, STEPS = 4, 16, 3
# In the order of a run: an evaluation, step 1, step 2, an evaluation, step 3, an evaluation.
IN_STEP_2 = EVALUATED + SAMPLED + 5
IN_THE_EVALUATION_AFTER_IT = EVALUATED + 2 * SAMPLED + 1


def answer(question: dict[str, Any]) -> Reply:
    """A reward and a verdict that differ from response to response."""
    size = len(question["response"])
    return Reply({"reward": size % 7 / 7, "verdict": "correct" if size % 2 else "wrong", "extracted": str(size)})


class FailingService:
    """Answers a number of questions, and then drops every connection."""

    def __init__(self, answers_left: int) -> None:
        self.answers_left = answers_left

    def __call__(self, question: dict[str, Any]) -> Reply:
        self.answers_left -= 1
        return answer(question) if self.answers_left >= 0 else Reply(mode="drop")


def train(tiny_model, folder, part: str, service: Service) -> dict[str, Any]:
    table = {
        "model": {"path": str(tiny_model)},
        "data": {"source": "arithmetic", "max_prompt_tokens": 1000},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 12},
        "train": {"steps": STEPS, "minibatch_size": 8},
        "actor": {"learning_rate": 1e-3},
        "critic": {"learning_rate": 1e-3},
        "eval": {"every": 2, "sets": [{"name": "arithmetic-test", "limit": EVALUATED}]},
        # No step reaches this: only the failure writes a checkpoint.
        "checkpoint": {"every": 100},
        part: {"name": "http", "url": service.url, "give_up_seconds": 0.5, "concurrency": 4},
    }
    runs.train(validate_recipe(table), folder, plain=True)
    return contents(folder)


def contents(folder) -> dict[str, Any]:
    """Records of a run, without times and memory."""
    metrics = [
        {name: value for name, value in row.items() if not name.startswith(("time/", "memory/"))}
        for row in RunFolder(folder).read_metrics()
    ]
    tables = {path.name: pyarrow.parquet.read_table(path).to_pylist() for path in sorted(folder.glob("*/*.parquet"))}
    return {"metrics": metrics, "evals": RunFolder(folder).read_evals(), "tables": tables}


@pytest.mark.parametrize(
    "part, answers, saved_step", [("reward", IN_STEP_2, 1), ("verifier", IN_THE_EVALUATION_AFTER_IT, 2)], ids=str
)
def test_a_run_resumes_after_its_service_has_stopped(tiny_model, tmp_path, monkeypatch, part, answers, saved_step):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Service(answer) as service:
        undisturbed = train(tiny_model, tmp_path / "undisturbed", part, service)
        requests = len(service.posted)
    assert requests == 3 * EVALUATED + STEPS * SAMPLED
    assert len({row["reward"] for rows in undisturbed["tables"].values() for row in rows}) > 2 or part == "verifier"

    folder = tmp_path / "run"
    with Service(FailingService(answers)) as service:
        with pytest.raises(RemoteError, match=rf"{service.url} gave no answer in \d+ attempts .*last checkpoint"):
            train(tiny_model, folder, part, service)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{saved_step:06d}"]
        assert contents(folder)["metrics"] == undisturbed["metrics"][:saved_step]

        service.answer = answer
        assert train(tiny_model, folder, part, service) == undisturbed
    first, second = (
        load_file(tmp_path / name / "exports" / "final" / "model.safetensors") for name in ("undisturbed", "run")
    )
    assert all((first[name] == second[name]).all() for name in first)
