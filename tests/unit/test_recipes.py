"""Every shipped recipe is read, and the published ones are compared with the publication, value by value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from simplerl.cli.train import check_names
from simplerl.config import (
    KINDS,
    RENAMED,
    DistillRecipe,
    PipelineRecipe,
    SFTRecipe,
    load_recipe,
    read_recipe,
    recipe_name,
    shipped_recipes,
)
from simplerl.data.base import benchmark_module
from simplerl.errors import ConfigError
from simplerl.estimate.overview import make_plan
from simplerl.estimate.steps import sft_steps
from simplerl.pipeline.plan import make_plan as make_pipeline

pytestmark = pytest.mark.unit

V0_BENCHMARKS = (
    "gsm8k", "math500", "minerva-math", "gaokao2023en", "olympiadbench", "college-math", "aime24", "amc23",
)  # fmt: skip


def dumped(name: str) -> dict[str, Any]:
    return load_recipe(name).model_dump()


SHIPPED = {
    "train": {
        "quickstart",
        "simplerl-zero-qwen2.5-math-7b",
        "zero-qwen2.5-0.5b-1gpu",
        "zero-qwen2.5-1.5b-1gpu",
        "zoo-grpo-llama-3.1-8b",
        "zoo-grpo-qwen2.5-0.5b",
        "zoo-grpo-qwen2.5-7b",
        "zoo-grpo-qwen2.5-math-7b",
    },
    "sft": {
        "longcot-sft-qwen2.5-math-7b",
        "math-sft-qwen2.5-math-7b",
        "quickstart-math-sft",
        "quickstart-sft",
    },
    "distill": {"quickstart-distill", "simplerl-distill-qwq"},
    "pipeline": {"quickstart-simplerl", "simplerl-qwen2.5-math-7b"},
}


def test_the_shipped_recipes() -> None:
    found = {name: read_recipe(name).get("kind", "train") for name in shipped_recipes()}
    assert found == {name: kind for kind, names in SHIPPED.items() for name in names}


def test_every_recipe_has_a_folder_of_its_own() -> None:
    """A dot is no ending: zoo-grpo-qwen2.5-7b and zoo-grpo-qwen2.5-math-7b once shared runs/zoo-grpo-qwen2."""
    assert [recipe_name(name) for name in shipped_recipes()] == list(shipped_recipes())
    assert recipe_name("mine/my.v2.toml") == "my.v2"


@pytest.mark.parametrize("name", sorted(SHIPPED["train"]))
def test_every_recipe_is_whole(name: str) -> None:
    recipe = load_recipe(name)
    check_names(recipe)
    assert recipe.description
    assert make_plan(recipe, problems=8000).steps


@pytest.mark.parametrize("name", sorted(SHIPPED["sft"]))
def test_every_sft_recipe_is_whole(name: str) -> None:
    recipe = load_recipe(name, kind=SFTRecipe)
    check_names(recipe)
    assert recipe.description
    assert sft_steps(recipe, examples=8000) > 100


@pytest.mark.parametrize("name", sorted(SHIPPED["distill"]))
def test_every_distillation_is_whole(name: str) -> None:
    recipe = load_recipe(name, kind=DistillRecipe)
    assert recipe.description
    assert all(benchmark_module(benchmark) for benchmark in recipe.data.benchmarks)


@pytest.mark.parametrize("name", sorted(SHIPPED["pipeline"]))
def test_every_pipeline_is_whole(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, kind=PipelineRecipe)
    plan = make_pipeline(recipe, tmp_path / name)
    assert recipe.description
    assert not (tmp_path / name).exists(), "planning writes nothing"
    assert [task.stage.run for task in plan.tasks][-1] == "report"


def test_simplerl_is_the_same_reinforcement_learning_after_a_warm_up(tmp_path: Path) -> None:
    plan = make_pipeline(load_recipe("simplerl-qwen2.5-math-7b", kind=PipelineRecipe), tmp_path / "p")
    stages = {task.name: task.recipe.model_dump() for task in plan.tasks if task.recipe is not None}
    zero = dumped("simplerl-zero-qwen2.5-math-7b")
    zero["model"]["path"] = str(tmp_path / "p" / "sft" / "exports" / "final")
    zero["data"]["template"] = "qwen25-math-cot"
    assert stages["simplerl"] == zero
    assert stages["distill"]["data"]["source"]["name"] == "math-lvl3to5"
    # What is kept is what the warm-up takes and what reinforcement learning allows.
    limits = (stages["distill"]["filter"]["max_tokens"], stages["sft"]["train"]["max_response_tokens"])
    assert limits == (zero["rollout"]["max_tokens"],) * 2
    assert stages["sft"]["model"]["path"] == "Qwen/Qwen2.5-Math-7B"
    assert stages["sft"]["data"]["source"]["data_path"] == str(tmp_path / "p" / "distill" / "kept.jsonl")


def test_the_sft_baseline_learns_the_solutions_of_the_same_problems() -> None:
    recipe = load_recipe("math-sft-qwen2.5-math-7b", kind=SFTRecipe)
    assert (recipe.model.path, recipe.data.source.name) == ("Qwen/Qwen2.5-Math-7B", "math-solutions")


def test_simplerl_zero_is_the_published_run() -> None:
    recipe = dumped("simplerl-zero-qwen2.5-math-7b")
    assert recipe["model"] == {
        "path": "Qwen/Qwen2.5-Math-7B",
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "kernels": "auto",
        "gradient_checkpointing": True,
        "trust_remote_code": False,
        "device": "cuda",
        "lora": None,
        "offload": "none",
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
        "clip": 10.0, "overlong_buffer": 0, "overlong_penalty": 1.0,
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
        "whiten_advantages": True,
        "aggregation": "sequence-mean",
    }
    assert {key: recipe["algorithm"][key] for key in algorithm} == algorithm
    assert recipe["train"]["steps"] is None
    train = {
        "data_epochs": 20,
        "minibatch_size": 128,
        "ppo_epochs": 1,
        "critic_warmup_steps": 0,
        "logprob_temperature": "one",
    }
    assert {key: recipe["train"][key] for key in train} == train
    adamw = {"name": "adamw", "path": None, "betas": (0.9, 0.95), "eps": 1e-8}
    adamw |= {"weight_decay": 0.0, "max_grad_norm": 1.0}
    schedule = {"schedule": "cosine", "warmup": 0.03, "min_lr_ratio": 0.1}
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
        "kl_loss_coef": 1e-4, "kl_loss_estimator": "k3", "entropy_coef": 0.001, "dynamic_sampling_rounds": 0,
    }  # fmt: skip
    assert {key: recipe["algorithm"][key] for key in algorithm} == algorithm
    assert recipe["reward"] == {
        "name": "accuracy", "path": None, "clip": None, "overlong_buffer": 0, "overlong_penalty": 1.0,
    }  # fmt: skip
    assert (recipe["train"]["steps"], recipe["train"]["minibatch_size"], recipe["train"]["ppo_epochs"]) == (
        100,
        256 * 8,
        1,
    )
    actor = {"learning_rate": 5e-7, "betas": (0.9, 0.999), "weight_decay": 0.01, "schedule": "constant", "warmup": 0.0}
    assert {key: recipe["actor"][key] for key in actor} == actor


def test_an_evaluation_may_have_a_template_of_its_own() -> None:
    """The published training prompts lack the newline that the published evaluation has."""
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    assert (recipe.data.template, recipe.eval.template) == ("qwen25-math-cot-v0", "qwen25-math-cot")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("train.episodes=2", "train.data_epochs"),
        ("train.epochs=2", "train.ppo_epochs"),
        ("train.lanes=1", "train.cpu_threads"),
        ("engine.lanes=1", "engine.cpu_threads"),
        ("actor.floor=0.1", "actor.min_lr_ratio"),
        ("cluster.patience=3", "cluster.heartbeat_timeout"),
    ],
)
def test_a_setting_that_was_renamed_names_its_new_name(setting: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(setting.partition('=')[0])} is now called {re.escape(name)}"):
        load_recipe("quickstart", ["engine.name=embedded", setting])


def test_every_new_name_is_a_setting() -> None:
    """A renamed key that names a key nobody knows would send a user in a circle."""
    known = {
        f"{block}.{key}"
        for name in ("quickstart", "zoo-grpo-qwen2.5-0.5b", "quickstart-sft", "quickstart-distill")
        for block, table in load_recipe(name, kind=KINDS[read_recipe(name).get("kind", "train")]).model_dump().items()
        for key in (table if isinstance(table, dict) else ())
    }
    blocks = {key.partition(".")[0] for key in known}
    for old, new in RENAMED.items():
        assert old not in known
        assert new in blocks or any(word.strip(",;()") in known for word in new.split()), new
