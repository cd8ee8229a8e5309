"""The memory that a recipe takes."""

from __future__ import annotations

import math

from simplerl import plugins
from simplerl.config import Recipe
from simplerl.plan.shapes import Shape

GIB = 1 << 30
MAX_LOGITS = 1 << 26
"""Logits formed at a time, see `simplerl.functional.logprobs`."""


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
