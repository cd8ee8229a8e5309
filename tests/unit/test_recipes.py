"""Every shipped recipe is read, and the published ones are compared with the publication, value by value."""

from __future__ import annotations

from typing import Any

import pytest

from simplerl.config import load_recipe, shipped_recipes
from simplerl.plan import make_plan

pytestmark = pytest.mark.unit

V0_BENCHMARKS = (
    "gsm8k", "math500", "minerva-math", "gaokao2023en", "olympiadbench", "college-math", "aime24", "amc23",
)  # fmt: skip


def dumped(name: str) -> dict[str, Any]:
    return load_recipe(name).model_dump()


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_whole(name: str) -> None:
    from simplerl.cli.train import check_names

    recipe = load_recipe(name)
    check_names(recipe)
    assert recipe.description
    assert make_plan(recipe, problems=8000).steps


def test_the_shipped_recipes() -> None:
    assert set(shipped_recipes()) == {
        "quickstart",
        "simplerl-zero-qwen2.5-math-7b",
        "zero-qwen2.5-0.5b-1gpu",
        "zero-qwen2.5-1.5b-1gpu",
        "zoo-grpo-llama-3.1-8b",
        "zoo-grpo-qwen2.5-0.5b",
        "zoo-grpo-qwen2.5-7b",
        "zoo-grpo-qwen2.5-math-7b",
    }


def test_simplerl_zero_is_the_published_run() -> None:
    recipe = dumped("simplerl-zero-qwen2.5-math-7b")
    assert recipe["model"] == {
        "path": "Qwen/Qwen2.5-Math-7B",
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "gradient_checkpointing": True,
        "trust_remote_code": False,
        "device": "cuda",
        "lora": None,
    }
    assert recipe["data"] == {
        "source": {"name": "math-lvl3to5", "path": None, "data_path": None},
        "levels": (),
        "template": "qwen25-math-cot-v0",
        "max_prompt_tokens": 1024,
    }
    assert recipe["rollout"] == {
        "prompts_per_step": 1024,
        "samples_per_prompt": 8,
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 3000,
        "stop": ("</s>", "<|im_end|>", "<|endoftext|>"),
    }
    assert recipe["reward"] == {
        "name": "simplerl", "path": None, "correct": 1.0, "wrong": -0.5, "no_answer": -1.0, "error": -0.5,
    }  # fmt: skip


def test_simplerl_zero_optimises_as_published() -> None:
    recipe = dumped("simplerl-zero-qwen2.5-math-7b")
    algorithm = {
        "name": "ppo",
        "gamma": 1.0,
        "lam": 0.95,
        "value_lam": None,
        "adaptive_lam_alpha": None,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "value_clip": 0.2,
        "kl_coef": 0.01,
        "kl_target": None,
        "kl_loss_coef": 0.0,
        "entropy_coef": 0.0,
        "reward_clip": 10.0,
        "whiten_advantages": True,
        "aggregation": "sequence-mean",
    }
    assert {key: recipe["algorithm"][key] for key in algorithm} == algorithm
    assert recipe["train"]["steps"] is None
    train = {"episodes": 20, "minibatch_size": 128, "epochs": 1, "critic_warmup_steps": 0, "logprob_temperature": "one"}
    assert {key: recipe["train"][key] for key in train} == train
    adamw = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
    schedule = {"schedule": "cosine", "warmup": 0.03, "floor": 0.1}
    assert recipe["actor"] == {"learning_rate": 5e-7, **adamw, **schedule}
    assert recipe["critic"] == {"learning_rate": 9e-6, **adamw, **schedule}
    assert recipe["checkpoint"]["every"] == 4


def test_simplerl_zero_evaluates_as_published() -> None:
    evaluation = dumped("simplerl-zero-qwen2.5-math-7b")["eval"]
    assert tuple(each["name"] for each in evaluation["sets"]) == V0_BENCHMARKS
    assert all(each["limit"] is None for each in evaluation["sets"])
    assert evaluation["temperatures"] == (0.0,)
    assert evaluation["max_tokens"] == 3000


@pytest.mark.parametrize(
    ("name", "model", "source", "template"),
    [
        ("zoo-grpo-qwen2.5-math-7b", "Qwen/Qwen2.5-Math-7B", "math-lvl3to5", "qwen-boxed"),
        ("zoo-grpo-qwen2.5-7b", "Qwen/Qwen2.5-7B", "math-lvl3to5", "qwen-boxed"),
        ("zoo-grpo-llama-3.1-8b", "meta-llama/Llama-3.1-8B", "gsm8k-math1", "abel"),
        ("zoo-grpo-qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "gsm8k-math1", "abel"),
    ],
)
def test_zoo_is_the_published_runs(name: str, model: str, source: str, template: str) -> None:
    recipe = dumped(name)
    assert (recipe["model"]["path"], recipe["data"]["source"]["name"]) == (model, source)
    assert recipe["data"]["template"] == template
    rollout = {"prompts_per_step": 1024, "samples_per_prompt": 8, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8192}
    assert {key: recipe["rollout"][key] for key in rollout} == rollout
    algorithm = {
        "name": "grpo", "clip_low": 0.2, "clip_high": 0.2, "scale_by_std": True, "aggregation": "token-mean",
        "kl_loss_coef": 1e-4, "kl_loss_estimator": "k3", "entropy_coef": 0.001, "resample_rounds": 0,
        "overlong_buffer": 0,
    }  # fmt: skip
    assert {key: recipe["algorithm"][key] for key in algorithm} == algorithm
    assert recipe["reward"]["name"] == "accuracy"
    assert (recipe["train"]["steps"], recipe["train"]["minibatch_size"], recipe["train"]["epochs"]) == (100, 256 * 8, 1)
    actor = {"learning_rate": 5e-7, "betas": (0.9, 0.999), "weight_decay": 0.01, "schedule": "constant", "warmup": 0.0}
    assert {key: recipe["actor"][key] for key in actor} == actor


def test_an_evaluation_may_have_a_template_of_its_own() -> None:
    """The published training prompts lack the newline that the published evaluation has."""
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    assert (recipe.data.template, recipe.eval.template) == ("qwen25-math-cot-v0", "qwen25-math-cot")
