"""What follows from a recipe before anything runs: sequences, steps, tokens, models, memory. No torch, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from simplerl import plugins
from simplerl.config import Recipe, SFTRecipe
from simplerl.errors import ConfigError

GIB = 1 << 30
MAX_LOGITS = 1 << 26
"""Logits formed at a time, see `simplerl.functional.logprobs`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-like decoder (Qwen2, Llama, Mistral)."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int
    tied: bool
    qkv_bias: bool

    @property
    def layer_parameters(self) -> int:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys + self.qkv_bias * (queries + 2 * keys)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def outer_parameters(self) -> int:
        """What is not in a layer: embeddings, head, the last norm."""
        return (2 - self.tied) * self.vocab * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """Of the causal language model, tied ones once."""
        return self.outer_parameters + self.layers * self.layer_parameters

    @property
    def critic_parameters(self) -> int:
        """The body without its language head, and a linear value head."""
        return self.parameters - (not self.tied) * self.vocab * self.hidden + self.hidden + 1

    @property
    def cache_elements(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def _qwen(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, *, small: bool = False) -> Shape:
    vocab = 151_936 if small else 152_064
    return Shape(vocab, hidden, layers, heads, kv_heads, intermediate, hidden // heads, small, True)


KNOWN = {
    "Qwen2.5-0.5B": _qwen(896, 24, 14, 2, 4864, small=True),
    "Qwen2.5-1.5B": _qwen(1536, 28, 12, 2, 8960, small=True),
    "Qwen2.5-3B": _qwen(2048, 36, 16, 2, 11008, small=True),
    "Qwen2.5-7B": _qwen(3584, 28, 28, 4, 18944),
    "Qwen2.5-14B": _qwen(5120, 48, 40, 8, 13824),
    "Qwen2.5-32B": _qwen(5120, 64, 40, 8, 27648),
    "Qwen2.5-Math-1.5B": _qwen(1536, 28, 12, 2, 8960, small=True),
    "Qwen2.5-Math-7B": _qwen(3584, 28, 28, 4, 18944),
    "Llama-3.1-8B": Shape(128_256, 4096, 32, 32, 8, 14336, 128, False, False),
    "Mistral-7B-v0.1": Shape(32_000, 4096, 32, 32, 8, 14336, 128, False, False),
    "Mistral-Small-24B-Base-2501": Shape(131_072, 5120, 40, 32, 8, 32768, 128, False, False),
    "deepseek-math-7b-base": Shape(102_400, 4096, 30, 32, 32, 11008, 128, False, False),
}
"""Published sizes, by the last part of the model's name."""

PROBLEMS = {"math-lvl3to5": 8521, "math": 11_998, "gsm8k": 7473, "gsm8k-math1": 8431}
"""Usable problems of the published training sets, for when they are not at hand."""


def known_shape(path: str) -> Shape | None:
    """The sizes of a model folder, of the embedded base, or of a published model by its name; None if unknown."""
    folder = Path(str(resources.files("simplerl") / "assets" / path)) if path == "tiny-math-base" else Path(path)
    file = folder / "config.json"
    if not file.is_file():
        return KNOWN.get(path.rpartition("/")[2].removesuffix("-Instruct"))
    return shape_of(json.loads(file.read_text(encoding="utf-8")))


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The sizes in a `transformers` config.json; None for an architecture this knows nothing of."""
    if config.get("model_type") not in ("qwen2", "llama", "mistral"):
        return None
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        vocab=config["vocab_size"],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        intermediate=config["intermediate_size"],
        head_dim=config.get("head_dim") or hidden // heads,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=config["model_type"] == "qwen2",
    )


def known_problems(recipe: Recipe) -> int | None:
    """Usable problems of the recipe's source where that is published and the recipe keeps all; None if unknown."""
    return None if recipe.data.levels else PROBLEMS.get(recipe.data.source.name)


def total_steps(recipe: Recipe, problems: int) -> int:
    """Rollout batches of the whole run: `train.steps`, or `train.episodes` passes.

    Passes run on into each other, so only the very last batch may be short of problems; it is not trained on.
    """
    if recipe.train.steps is not None:
        return recipe.train.steps
    prompts = recipe.train.episodes * problems
    if prompts < recipe.rollout.prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_step={recipe.rollout.prompts_per_step} is more than the {prompts} prompts of "
            f"train.episodes={recipe.train.episodes}; lower the one, raise the other, or set train.steps"
        )
    return prompts // recipe.rollout.prompts_per_step


def sft_steps(recipe: SFTRecipe, examples: int) -> int:
    """Optimiser steps of the whole run: `train.steps`, or `train.epochs` passes.

    Passes run on into each other, so only the very last batch may be short; it is not trained on.
    """
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.epochs * examples < train.batch_size:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is more than the {train.epochs * examples} sequences of "
            f"train.epochs={train.epochs} passes over {examples}; lower the one, raise the other, or set train.steps"
        )
    return train.epochs * examples // train.batch_size


def updates_per_step(recipe: Recipe) -> int:
    """Optimiser steps on one rollout batch; the minibatch divides it."""
    return recipe.train.epochs * recipe.rollout.sequences // recipe.train.minibatch_size


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe asks for. `None` is unknown before the data or the model are at hand."""

    sequences_per_step: int
    updates_per_step: int
    minibatch_prompts: float
    max_response_tokens_per_step: int
    max_tokens_per_step: int
    problems: int | None
    steps: int | None
    updates: int | None
    passes: float | None
    unused_prompts: int | None
    models: tuple[str, ...]
    parameters: dict[str, int] | None
    memory_gib: dict[str, float] | None


def make_plan(recipe: Recipe, problems: int | None = None) -> Plan:
    """The plan of a recipe; `problems` is the number of training problems where it is known."""
    rollout = recipe.rollout
    problems = known_problems(recipe) if problems is None else problems
    steps = recipe.train.steps if problems is None else total_steps(recipe, problems)
    asked = None if steps is None else steps * rollout.prompts_per_step
    models, shape = models_held(recipe), known_shape(recipe.model.path)
    return Plan(
        sequences_per_step=rollout.sequences,
        updates_per_step=updates_per_step(recipe),
        minibatch_prompts=recipe.train.minibatch_size / rollout.samples_per_prompt,
        max_response_tokens_per_step=rollout.sequences * rollout.max_tokens,
        max_tokens_per_step=rollout.sequences * (recipe.data.max_prompt_tokens + rollout.max_tokens),
        problems=problems,
        steps=steps,
        updates=None if steps is None else steps * updates_per_step(recipe),
        passes=asked / problems if problems and asked else None,
        unused_prompts=_unused(recipe, problems, asked),
        models=models,
        parameters=None if shape is None else parameters_held(models, shape),
        memory_gib=None if shape is None else memory(recipe, models, shape),
    )


def _unused(recipe: Recipe, problems: int | None, asked: int | None) -> int | None:
    """Prompts of the last pass that make no whole batch; None where `train.steps` ends the run."""
    if recipe.train.steps is not None or problems is None or asked is None:
        return None
    return recipe.train.episodes * problems - asked


def models_held(recipe: Recipe) -> tuple[str, ...]:
    """The models in memory: what the algorithm asks for, and the engine's copy of the policy."""
    config = recipe.algorithm
    algorithm = plugins.load("algorithms", config.name, config.path).build(config, recipe)
    critic = ("critic",) if algorithm.needs_critic else ()
    reference = ("reference",) if algorithm.needs_reference else ()
    return ("actor", *critic, *reference, "engine copy")


def parameters_held(models: tuple[str, ...], shape: Shape) -> dict[str, int]:
    """Parameters of each model."""
    return {name: shape.critic_parameters if name == "critic" else shape.parameters for name in models}


FORMULA = """\
without cluster.ray all of this is on one device; with it, on each learner's (sharded) and on each engine's
weights        4 bytes a parameter (float32 masters); the engine's copy in model.dtype
gradients      4 bytes a parameter of actor and critic
moments        8 bytes a parameter of actor and critic (AdamW)
gathered       with several learners: what is outside of layers and two layers, whole, in float32, with their gradients
cast weights   2 bytes a parameter of the model at work, with bfloat16; of what is gathered, with several learners
KV cache       engine.max_batch x (data.max_prompt_tokens + rollout.max_tokens) x 2 x layers x KV heads x head size
activations    micro-batch tokens x layers x (34 hidden + 8 intermediate) bytes with bfloat16, twice that with float32;
               with gradient checkpointing 4 hidden bytes a layer, and one layer whole
logits         3 float32 copies of one chunk, at most 64 M elements each"""


def memory(recipe: Recipe, models: tuple[str, ...], shape: Shape) -> dict[str, float]:
    """Estimated GiB by `FORMULA`, part by part, with the sum of a device under "total" or "an engine's total"."""
    learner, engine = _learner_bytes(recipe, models, shape), _engine_bytes(recipe, shape)
    groups = {"total": learner | engine}
    if recipe.cluster.ray is not None:
        groups = {"a learner's total": learner, "an engine's total": engine}
    gib: dict[str, float] = {}
    for name, parts in groups.items():
        each = {part: count / GIB for part, count in parts.items()}
        gib |= each | {name: math.fsum(each.values())}
    return gib


def _learner_bytes(recipe: Recipe, models: tuple[str, ...], shape: Shape) -> dict[str, float]:
    held = parameters_held(models, shape)
    trained = sum(held[name] for name in ("actor", "critic") if name in held)
    ranks = recipe.cluster.learners if recipe.cluster.ray is not None else 1
    whole = shape.parameters if ranks == 1 else shape.outer_parameters + 2 * shape.layer_parameters
    tokens = max(recipe.train.micro_batch_tokens, recipe.data.max_prompt_tokens + recipe.rollout.max_tokens)
    return {
        "weights": 4 * sum(count for name, count in held.items() if name != "engine copy") / ranks,
        "gradients": 4 * trained / ranks,
        "moments": 8 * trained / ranks,
        **({"gathered": 8 * whole} if ranks > 1 else {}),
        "cast weights": 2 * whole if recipe.model.dtype == "bfloat16" else 0,
        "activations": tokens * _activation_bytes(recipe, shape),
        "logits": 3 * 4 * min(MAX_LOGITS, tokens * shape.vocab),
    }


def _engine_bytes(recipe: Recipe, shape: Shape) -> dict[str, float]:
    size = 2 if recipe.model.dtype == "bfloat16" else 4
    return {
        "engine copy": size * shape.parameters,
        "KV cache": _cached_tokens(recipe) * shape.cache_elements * size,
    }


def _cached_tokens(recipe: Recipe) -> int:
    """Tokens whose keys and values the engine may hold at once."""
    rows = min(getattr(recipe.engine, "max_batch", recipe.rollout.sequences), recipe.rollout.sequences)
    return rows * (recipe.data.max_prompt_tokens + recipe.rollout.max_tokens)


def _activation_bytes(recipe: Recipe, shape: Shape) -> int:
    """Bytes kept for the backward pass, per token of a micro-batch."""
    layer = (34 * shape.hidden + 8 * shape.intermediate) * (1 if recipe.model.dtype == "bfloat16" else 2)
    if recipe.model.gradient_checkpointing:
        return 4 * shape.hidden * shape.layers + layer
    return layer * shape.layers
