"""Whole runs of reinforcement learning, from a recipe to the files of the run folder."""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simplerl.config import load_recipe, validate_recipe
from simplerl.errors import NonFiniteError
from simplerl.storage.records import RunFolder
from simplerl.train import run as runs

pytestmark = pytest.mark.e2e

# Low token ids are rewarded: a random model learns that in seconds, and only through its own samples.
REWARD = '''
def reward(rollout, verdict):
    """Share of tokens below 100."""
    return sum(token < 100 for token in rollout.token_ids) / len(rollout.token_ids)
'''


def recipe_table(tiny_model, reward_file, algorithm):
    return {
        "model": {"path": str(tiny_model)},
        "data": {"source": "arithmetic"},
        "rollout": {"prompts_per_step": 8, "samples_per_prompt": 8, "max_tokens": 12},
        "reward": {"path": str(reward_file)},
        "algorithm": algorithm,
        "train": {"steps": 20, "minibatch_size": 16},
        "actor": {"learning_rate": 3e-3, "schedule": "constant"},
        "critic": {"learning_rate": 3e-3, "schedule": "constant"},
        "checkpoint": {"every": 6},
    }


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "ppo", "kl_coef": 0.001, "lam": 0.95},
        {"name": "grpo", "dynamic_sampling_rounds": 1, "clip_high": 0.28},
    ],
    ids=["ppo", "grpo"],
)
def test_training_raises_the_reward(tiny_model, tmp_path, algorithm):
    reward_file = tmp_path / "low_tokens.py"
    reward_file.write_text(REWARD)
    folder = runs.train(validate_recipe(recipe_table(tiny_model, reward_file, algorithm)), tmp_path / "run", plain=True)

    rows = RunFolder(folder).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[0]["reward/mean"] < 0.5
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.25
    assert max(row["mismatch/max"] for row in rows) < 1e-4

    exported = AutoModelForCausalLM.from_pretrained(folder / "exports" / "final")
    assert len(AutoTokenizer.from_pretrained(folder / "exports" / "final")) == exported.config.vocab_size
    assert all(torch.isfinite(p).all() for p in exported.parameters())


def test_training_with_muon_raises_the_reward(tiny_model, tmp_path):
    reward_file = tmp_path / "low_tokens.py"
    reward_file.write_text(REWARD)
    table = recipe_table(tiny_model, reward_file, {"name": "grpo"})
    table["actor"]["name"] = "muon"
    rows = RunFolder(runs.train(validate_recipe(table), tmp_path / "run", plain=True)).read_metrics()
    assert rows[0]["reward/mean"] < 0.5
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.25


def test_adapters_are_trained_and_the_engine_samples_with_them(tiny_model, tmp_path):
    reward_file = tmp_path / "low_tokens.py"
    reward_file.write_text(REWARD)
    table = recipe_table(tiny_model, reward_file, {"name": "grpo", "kl_loss_coef": 0.001})
    table["model"]["lora"] = {"rank": 8, "alpha": 32}
    table["actor"]["learning_rate"] = 2e-2
    table["train"]["steps"] = 4
    folder = runs.train(validate_recipe(table), tmp_path / "run", plain=True)

    rows = RunFolder(folder).read_metrics()
    assert max(row["mismatch/max"] for row in rows) < 1e-4
    assert abs(rows[0]["kl/reference"]) < 1e-6 < abs(rows[-1]["kl/reference"]), "the reference has no adapters"
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (tiny_model, folder / "exports" / "final"))
    moved = {
        name
        for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved and all(name.endswith("proj.weight") for name in moved)


@pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="needs the real MATH problems: set SIMPLERL_DATA")
def test_the_v0_recipe_runs_on_a_small_model_and_the_real_problems(tiny_model, tmp_path):
    small = [
        f"model.path={tiny_model}",
        "model.attention=sdpa",
        "model.device=cpu",
        "data.max_prompt_tokens=900",
        "eval.every=0",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=2",
        "rollout.max_tokens=16",
        "train.minibatch_size=4",
        "train.steps=2",
    ]
    folder = runs.train(load_recipe("simplerl-zero-qwen2.5-math-7b", small), tmp_path / "run", plain=True)
    rows = RunFolder(folder).read_metrics()
    assert [row["step"] for row in rows] == [1, 2]
    # A random model never writes a box.
    assert rows[0]["reward/mean"] == -1
    assert rows[0]["kl/reference"] == 0 != rows[1]["kl/reference"]
    # As in v0, the learner's log-probs do not use the sampling temperature of 0.6, but the engine's do.
    assert rows[0]["mismatch/mean"] > 0.01


def test_a_refused_update_ends_the_run_with_a_checkpoint_of_the_step_before(tiny_model, tmp_path, monkeypatch):
    reward_file = tmp_path / "low_tokens.py"
    reward_file.write_text(REWARD)
    recipe = validate_recipe(recipe_table(tiny_model, reward_file, "ppo"))
    build_reward = runs.services.build_reward

    def broken(recipe):
        calls = iter(range(10**6))
        reward = build_reward(recipe)
        # Number 128 is the first response of step 3, after two steps of 64.
        return lambda rollout, verdict: float("nan") if next(calls) == 2 * 64 else reward(rollout, verdict)

    monkeypatch.setattr(runs.rl, "build_reward", broken)
    with pytest.raises(NonFiniteError, match=r"is nan; the update was refused"):
        runs.train(recipe, tmp_path / "run", plain=True)
    monkeypatch.undo()

    assert (tmp_path / "run" / "checkpoints" / "step-000002" / "manifest.json").exists()
    runs.train(recipe, tmp_path / "run", plain=True)
    assert [row["step"] for row in RunFolder(tmp_path / "run").read_metrics()] == list(range(1, 21))
