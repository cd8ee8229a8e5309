"""Steps, updates and models of a recipe, against numbers worked by hand and published ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from simplerl.config import Recipe, load_recipe, validate_recipe
from simplerl.data.base import load_problems, source_config
from simplerl.errors import ConfigError
from simplerl.estimate.execution import required_models
from simplerl.estimate.memory import models_in_memory
from simplerl.estimate.overview import make_plan
from simplerl.estimate.shapes import KNOWN, Shape, known_shape
from simplerl.estimate.steps import known_problems, needs_scoring_pass, total_steps
from simplerl.train.trainer import RLTrainer

pytestmark = pytest.mark.unit

# 5 tokens of 4 numbers, 2 layers, 2 query heads and 1 KV head of 2 numbers, MLP size 3.
SMALL = Shape(vocab=5, hidden=4, layers=2, heads=2, kv_heads=1, intermediate=3, head_dim=2, tied=True, qkv_bias=True)


def recipe(**tables: object) -> Recipe:
    base = {
        "data": {"source": "arithmetic", "max_prompt_tokens": 20},
        "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 30},
        "train": {"minibatch_size": 8, "ppo_epochs": 2, "data_epochs": 3, "micro_batch_tokens": 100},
        "engine": {"name": "embedded", "max_batch": 10},
    }
    return validate_recipe(base | tables)


def test_parameters_by_hand() -> None:
    # Layer: q and o 4x4 each, k and v 4x2 each, biases 4 + 2 + 2, three 4x3 matrices, two norms of 4: 100.
    assert SMALL.parameters == 5 * 4 + 2 * 100 + 4
    assert SMALL.critic_parameters == SMALL.parameters + 4 + 1
    assert SMALL.kv_numbers == 2 * 2 * 1 * 2


def test_untied_head_is_counted_once_more_and_not_in_the_critic() -> None:
    untied = replace(SMALL, tied=False)
    assert untied.parameters == SMALL.parameters + 20
    assert untied.critic_parameters == SMALL.critic_parameters


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-14B", 14_770_033_664),
        ("Qwen2.5-32B", 32_763_876_352),
        ("Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen2.5-Math-7B", 7_615_616_512),
        ("Llama-3.1-8B", 8_030_261_248),
        ("Mistral-7B-v0.1", 7_241_732_096),
        ("Mistral-Small-24B-Base-2501", 23_572_403_200),
        ("deepseek-math-7b-base", 6_910_365_696),
    ],
)
def test_parameters_of_published_models(name: str, count: int) -> None:
    assert KNOWN[name].parameters == count
    assert known_shape(f"somebody/{name}") == KNOWN[name]


def test_shape_of_a_folder_is_what_transformers_counts(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from simplerl.learner.models import ValueModel

    shape, model = known_shape(str(tiny_model)), AutoModelForCausalLM.from_pretrained(tiny_model)
    assert shape is not None
    assert shape.parameters == model.num_parameters()
    assert shape.critic_parameters == sum(p.numel() for p in ValueModel(model).parameters())


def test_unknown_models_have_no_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert known_shape(str(tmp_path)) is None
    assert known_shape("somebody/some-model") is None


def test_steps_of_a_run() -> None:
    # 3 passes over 25 problems are 75 prompts: 12 batches of 6, and 3 left over.
    plan = make_plan(recipe(), problems=25)
    assert (plan.steps, plan.unused_prompts, plan.passes) == (12, 3, 72 / 25)
    # 24 sequences, 2 epochs of 3 minibatches.
    assert (plan.sequences_per_step, plan.updates_per_step, plan.updates) == (24, 6, 72)
    assert (plan.max_response_tokens_per_step, plan.max_tokens_per_step) == (24 * 30, 24 * 50)


@pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="SIMPLERL_DATA, the published sets, is unset")
@pytest.mark.parametrize("source", ["math-lvl3to5", "math", "gsm8k", "gsm8k-math1"])
def test_sources_that_know_their_size_have_it(source: str) -> None:
    problems, _ = load_problems(source_config(source))
    assert known_problems(recipe(data={"source": source})) == len(problems)
    assert known_problems(recipe(data={"source": source, "levels": [1]})) is None
    assert known_problems(recipe()) is None


def test_train_steps_override_data_epochs() -> None:
    fixed = recipe(train={"minibatch_size": 8, "steps": 5})
    assert total_steps(fixed, problems=1) == 5
    assert make_plan(fixed).steps == 5


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ConfigError) as error:
        total_steps(recipe(), problems=1)
    assert str(error.value) == (
        "rollout.prompts_per_step=6 is more than the 3 prompts of train.data_epochs=3; "
        "lower prompts_per_step, raise data_epochs, or set train.steps"
    )


# --- when the policy is scored before the update ----------------------------------------------------------------------

UPDATES = [(1, 24), (1, 8), (2, 24), (2, 8)]
"""Passes over a batch of 24 sequences, and sequences of a minibatch: 1, 3, 2 and 6 updates."""
IMPORTANCE: list[dict[str, object]] = [
    {},
    {"importance": "none"},
    {"importance": "truncated"},
    {"importance": "masked"},
    {"staleness": 1},  # truncated by default
    {"staleness": 1, "importance": "none"},
]
ALGORITHMS: list[dict[str, object]] = [
    {"name": "ppo", "kl_coef": 0.1},
    {"name": "ppo", "kl_coef": 0.0},
    {"name": "grpo"},
]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 2])
def test_only_a_single_update_without_any_other_use_of_old_logprobs_needs_no_scoring_pass(
    step: int, warmup: int
) -> None:
    """Of the 72 combinations at a step: one update, no importance weights (3 spellings), no KL in the reward (2
    algorithms), and an actor that is trained, which in a warm-up of two steps it is from the third."""
    without = []
    for (epochs, size), importance, algorithm in product(UPDATES, IMPORTANCE, ALGORITHMS):
        train = {"ppo_epochs": epochs, "minibatch_size": size, "critic_warmup_steps": warmup, **importance}
        made, needs_old = recipe(train=train, algorithm=algorithm), algorithm.get("kl_coef") == 0.1
        needed = needs_scoring_pass(made, step, needs_old_logprobs=needs_old)
        trainer = SimpleNamespace(recipe=made, algorithm=SimpleNamespace(needs_old_logprobs=needs_old))
        assert RLTrainer.scores_first(trainer, step) is needed  # type: ignore[arg-type]
        if not needed:
            without.append((epochs, size, importance, algorithm))
    if step <= warmup:
        assert without == []
        return
    no_weights = ({}, {"importance": "none"}, {"staleness": 1, "importance": "none"})
    assert without == [(1, 24, each, algorithm) for each in no_weights for algorithm in ALGORITHMS[1:]]


def test_the_planner_scores_where_the_trainer_does() -> None:
    one_update: dict[str, object] = {"minibatch_size": 24}

    def scores(algorithm: dict[str, object], **train: object) -> tuple[bool, bool]:
        models = required_models(recipe(algorithm=algorithm, train=one_update | train))
        return models.scores_policy, models.always_scores_policy

    assert scores({"name": "grpo"}) == (False, False)
    assert scores({"name": "grpo"}, ppo_epochs=2) == (True, True)
    assert scores({"name": "grpo"}, minibatch_size=12) == (True, True)
    assert scores({"name": "grpo"}, importance="truncated") == (True, True)
    assert scores({"name": "grpo"}, staleness=1) == (True, True)
    assert scores({"name": "ppo", "kl_coef": 0.1}) == (True, True)
    assert scores({"name": "ppo", "kl_coef": 0.0}) == (False, False)
    assert scores({"name": "ppo", "kl_coef": 0.0}, critic_warmup_steps=3) == (True, False)


def test_the_published_run() -> None:
    plan = make_plan(load_recipe("simplerl-zero-qwen2.5-math-7b"))
    assert (plan.problems, plan.steps, plan.sequences_per_step, plan.updates_per_step) == (8521, 166, 8192, 64)
    assert plan.max_response_tokens_per_step == 24_576_000
    assert plan.parameters == {
        "actor": 7_615_616_512,
        "critic": 7_615_616_512 - 152_064 * 3584 + 3585,
        "reference": 7_615_616_512,
        "engine copy": 7_615_616_512,
    }


@pytest.mark.parametrize(
    ("algorithm", "models"),
    [
        ({"name": "ppo"}, ("actor", "critic", "reference", "engine copy")),
        ({"name": "ppo", "kl_coef": 0.0}, ("actor", "critic", "engine copy")),
        ({"name": "grpo"}, ("actor", "engine copy")),
        ({"name": "grpo", "kl_loss_coef": 0.1}, ("actor", "reference", "engine copy")),
    ],
)
def test_models_in_memory(algorithm: dict[str, object], models: tuple[str, ...]) -> None:
    assert models_in_memory(recipe(algorithm=algorithm)) == models


@pytest.mark.parametrize(
    ("name", "gib"), [("zero-qwen2.5-0.5b-1gpu", 24), ("zero-qwen2.5-1.5b-1gpu", 80), ("zoo-grpo-qwen2.5-0.5b", 80)]
)
def test_recipes_for_one_gpu_fit_it_with_a_tenth_to_spare(name: str, gib: int) -> None:
    plan = make_plan(load_recipe(name))
    assert plan.memory_gib is not None
    assert max(parts["total"] for parts in plan.memory_gib["all"].values()) < 0.9 * gib
