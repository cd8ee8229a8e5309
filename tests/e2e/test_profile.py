"""`simplerl profile` on a real run: what it prints adds up, and the run stays as it was."""

import hashlib
import json

import pytest

from simplerl.cli.main import run
from simplerl.config import validate_recipe
from simplerl.train import run as runs

pytestmark = pytest.mark.e2e


def recipe(tiny_model, **train):
    return validate_recipe(
        {
            "model": {"path": str(tiny_model)},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 12},
            "algorithm": {"name": "ppo", "kl_coef": 0.01},
            "train": {"steps": 2, "minibatch_size": 8, "cpu_threads": 2, **train},
            "checkpoint": {"every": 1},
        }
    )


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_is_profiled_from_its_checkpoint_and_not_touched(tiny_model, tmp_path, capsys):
    folder = runs.train(recipe(tiny_model), tmp_path / "run", plain=True)
    before = contents(folder)
    capsys.readouterr()
    assert run(["profile", str(folder), "--json", "--trace", str(tmp_path / "trace.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert contents(folder) == before
    phases = {phase["name"]: phase for phase in found["phases"]}
    assert list(phases) == ["rollout", "score", "update", "other"]
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases.values()))
    assert phases["rollout"]["tokens"] > 0 and phases["update"]["tokens"] == phases["score"]["tokens"]
    # Log-probs, reference and values forward; actor and critic forward and backward.
    assert phases["score"]["flop"] == pytest.approx(3 * phases["rollout"]["flop"])
    assert phases["update"]["flop"] == pytest.approx(6 * phases["rollout"]["flop"])
    names = {operator["name"] for phase in phases.values() for operator in phase["operators"]}
    assert "aten::mm" in names and found["peak"] > 1e8
    assert found["wastes"] and found["updates"] == 2 and found["scored"]
    assert {path.name for path in tmp_path.glob("trace-*.json")} == {f"trace-{n}.json" for n in list(phases)[:3]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "no recipe"),
        (".", "is a folder without a recipe.toml"),
        ("quickstart-sft", "is a recipe for `simplerl sft`, not for `simplerl train`"),
    ],
)
def test_what_cannot_be_profiled_is_said(source, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["profile", source]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_checkpoint_is_said(tiny_model, tmp_path, capsys):
    folder = runs.train(recipe(tiny_model), tmp_path / "run", plain=True)
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run(["profile", str(folder)]) == 2
    assert "has no complete checkpoint to profile from" in " ".join(capsys.readouterr().err.split())
