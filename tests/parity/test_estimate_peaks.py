"""Estimated peaks of scoring and updating against the allocator's record, on models of four layers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplerl import plugins
from simplerl.batch.batch import collate
from simplerl.config import Recipe, apply_overrides, validate_recipe
from simplerl.cpu import kernels_available
from simplerl.estimate.memory import Worker, learner_memory, workers
from simplerl.estimate.shapes import known_shape
from simplerl.learner.learner import LocalLearner
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict

pytestmark = pytest.mark.parity

PROMPT, RESPONSE, SAMPLES, VOCAB = 16, 112, 8, 512
OF_THE_ENGINE = ("engine copy", "KV cache")
ALWAYS_HELD = ("parameters", "moments")


def peak_of(function: Callable[[], Any]) -> int:
    """Peak bytes that a function allocated."""
    gc.collect()  # tensors of an earlier test that are freed meanwhile would count as freed by this function
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events: list[Any] = [each for each in record.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plan")
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


TORCH, CHECKPOINTS = "model.kernels=torch", "model.gradient_checkpointing=true"
EIGHT, MUON = "actor.name=adamw-8bit", "actor.name=muon"
LORA, HALF, PPO = "model.lora.rank=8", "model.dtype=bfloat16", "algorithm.name=ppo"


@pytest.mark.parametrize(
    "settings",
    [
        [TORCH],
        [TORCH, "train.micro_batch_tokens=1024"],
        [TORCH, PPO, "algorithm.kl_coef=0.0"],
        [TORCH, CHECKPOINTS],
        [TORCH, LORA],
        [TORCH, LORA, CHECKPOINTS],
        [TORCH, HALF],
        [TORCH, HALF, CHECKPOINTS],
        [TORCH, "algorithm.entropy_coef=0.01"],
        [TORCH, EIGHT],
        [TORCH, MUON],
        ["train.micro_batch_tokens=464"],
        ["train.micro_batch_tokens=464", PPO, "algorithm.kl_coef=0.0"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_peaks(model: str, settings: list[str]) -> None:
    if TORCH not in settings and not kernels_available():
        pytest.skip("no C compiler")
    if EIGHT in settings:
        pytest.importorskip("bitsandbytes")
    measured = peaks(made := recipe_of(model, settings))
    worker = estimated(made, model)
    for phase, bytes_ in measured.items():
        parts = {name: count for name, count in worker.phases[phase].items() if name not in OF_THE_ENGINE}
        always = sum(parts[name] for name in ALWAYS_HELD)
        assert sum(parts.values()) == pytest.approx(always + bytes_, rel=0.05), phase


def test_8_bit_moments_become_float32_during_a_step(model: str) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = recipe_of(model, [TORCH, EIGHT])
    shape = known_shape(model)
    assert shape is not None
    learner = learner_memory(recipe, shape, "cpu", 1)
    largest = max(shape.head_parameters, *(tensor.numel for tensor in shape.layer_tensors))
    parameter = torch.nn.Parameter(torch.zeros(largest))
    parameter.grad = torch.ones_like(parameter)
    optimizer = ModelOptimizer("actor", torch.nn.ParameterList([parameter]), recipe.actor, 10)
    optimizer.step()
    assert peak_of(optimizer.step) == pytest.approx(learner.optimizer_step()["workspace"], rel=0.01)
    # On a GPU the moments stay in 8 bits.
    assert learner_memory(recipe, shape, "cuda").optimizer_step()["workspace"] == 0


def recipe_of(model: str, settings: list[str]) -> Recipe:
    table = {
        "model": {"path": model, "device": "cpu"},
        "data": {"source": {"name": "arithmetic"}, "max_prompt_tokens": PROMPT},
        "rollout": {"prompts_per_step": 1, "samples_per_prompt": SAMPLES, "max_tokens": RESPONSE},
        "algorithm": {"name": "grpo"},
        "actor": {"learning_rate": 1e-6},
        "train": {"minibatch_size": SAMPLES, "micro_batch_tokens": 512, "ppo_epochs": 2, "cpu_threads": 1},
    }
    return validate_recipe(apply_overrides(table, settings), kind=Recipe)


def estimated(recipe: Recipe, model: str) -> Worker:
    shape = known_shape(model)
    assert shape is not None
    (worker,) = workers(recipe, shape, device="cpu", threads=1)
    return worker


def peaks(recipe: Recipe) -> dict[str, int]:
    """Peak bytes of scoring and of the update of a second step. The first step allocates the moments."""
    prompt = Prompt(Problem("p", "q", "1"), "q", tuple(range(5, 5 + PROMPT)))
    rollout = Rollout.single_turn("r", prompt, tuple(range(5, 5 + RESPONSE)), (-6.0,) * RESPONSE, "", "stop", 0)
    group = [GradedRollout(rollout, Verdict("correct"), float(number % 2)) for number in range(SAMPLES)]
    batch = collate([group])
    config = recipe.algorithm
    algorithm = plugins.load("algorithms", config.name, config.path).build(config, recipe)
    learner = LocalLearner(recipe, algorithm, 10, torch.device("cpu"))
    learner.update(algorithm.compute_advantages(learner.score(batch))[0], algorithm)
    kept: dict[str, Any] = {}

    def score() -> None:
        kept["scored"] = learner.score(batch)

    found = {"score": peak_of(score)}
    credited = algorithm.compute_advantages(kept.pop("scored"))[0]
    found["update"] = peak_of(lambda: learner.update(credited, algorithm))
    return found
