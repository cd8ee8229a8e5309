"""How a recipe's models are run, and how much of a batch they see at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simplerl import plugins
from simplerl.config import ModelConfig, OptimizerConfig, Recipe, TensorSpec
from simplerl.cpu_sizes import MAX_DEFAULT_THREADS, TILE
from simplerl.estimate.shapes import Shape
from simplerl.estimate.steps import needs_scoring_pass

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Models:
    """What an algorithm asks of the learner."""

    critic: bool
    reference: bool
    copied: bool
    """Whether the reference is a model of its own; under adapters it is the actor without them."""

    scores_policy: bool
    """True if some step computes the policy's log-probs before its first update: with critic warm-up its steps do."""

    always_scores_policy: bool
    """True if every step does."""

    entropy: bool
    """Whether the loss has a gradient along the entropy."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("actor", *("critic",) * self.critic, *("reference",) * self.copied, "engine copy")


@dataclass(frozen=True, slots=True)
class ExecutionMode:
    """How the learner computes, as far as memory and time depend on it."""

    device: Device
    bfloat16: bool
    kernels: bool
    """Through the C kernels, which know a CPU only."""

    attention: str
    checkpointing: bool
    adapted: tuple[str, ...] | None
    """Matrices with adapters, which are then all that is trained; None: everything is."""

    rank: int
    cpu_threads: int
    ranks: int
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    """The optimizer of each model that a recipe may train."""

    waiting: tuple[str, ...] = ()
    """What waits in the host's memory: "activations", "weights" with gradients and moments."""

    @property
    def sharded(self) -> bool:
        """Whether FSDP gathers layers: from other ranks, or from the host."""
        return self.ranks > 1 or "weights" in self.waiting

    @property
    def size(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.bfloat16 else 4

    @property
    def fused(self) -> bool:
        """Whether a decoder layer is one operation."""
        return self.kernels and self.adapted is None

    def trains(self, matrix: str) -> bool:
        """Whether the input of a matrix is kept for a gradient of it or of its adapter."""
        return self.adapted is None or matrix in self.adapted

    def adapters(self, shape: Shape) -> int:
        """Trained parameters of the adapters."""
        return sum(tensor.numel for tensor in self.adapter_tensors(shape))

    def adapter_tensors(self, shape: Shape) -> tuple[TensorSpec, ...]:
        """The tensors of the adapters."""
        pairs = (shape.linear[name] for name in self.adapted or ())
        shapes = [factor for size, out in pairs for factor in ((self.rank, size), (out, self.rank))]
        return tuple(TensorSpec(factor, in_layer=True) for factor in shapes) * shape.layers


@dataclass(frozen=True, slots=True)
class Load:
    """What is computed at once when every sequence is as long as the recipe allows. Counts are of one lane."""

    tokens: int
    """Of a micro-batch in an update."""

    responses: int
    """Response tokens among them, for which logits are formed."""

    parts: int
    """Micro-batches of an update, one after the other."""

    scored: int
    """Tokens of a micro-batch in scoring, where the whole rollout batch is split."""

    scored_responses: int
    longest: int
    """Tokens of the longest sequence."""

    keeps_values: bool
    """Whether scoring keeps the critic's forward pass for the only update."""


def models_of(recipe: Recipe) -> Models:
    config = recipe.algorithm
    algorithm = plugins.load("algorithms", config.name, config.path).build(config, recipe)
    after_warmup = recipe.train.critic_warmup_steps + 1
    first, later = (
        needs_scoring_pass(recipe, step, needs_old_logprobs=algorithm.needs_old_logprobs) for step in (1, after_warmup)
    )
    return Models(
        critic=algorithm.needs_critic,
        reference=algorithm.needs_reference,
        copied=algorithm.needs_reference and recipe.model.lora is None,
        scores_policy=first,
        always_scores_policy=later,
        entropy=bool(getattr(config, "entropy_coef", 0)),
    )


def device_of(recipe: Recipe) -> Device:
    """Where the recipe would run on this machine: `auto` is CUDA where a driver is."""
    wanted = recipe.model.device
    if wanted == "auto":
        return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    return wanted


def way_of(recipe: Recipe, shape: Shape, device: Device, threads: int | None = None) -> ExecutionMode:
    """How the learner of a recipe computes on a device; `threads` are a CPU's (empty: as torch would take them)."""
    model, lora = recipe.model, recipe.model.lora
    ranks = recipe.cluster.learners if recipe.cluster.ray is not None else 1
    cpu_threads = recipe.train.cpu_threads
    if cpu_threads is None:
        threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        cpu_threads = min(MAX_DEFAULT_THREADS, threads) if device == "cpu" else 1
    sizes = (shape.hidden, shape.queries, shape.keys, shape.intermediate)
    return ExecutionMode(
        device=device,
        bfloat16=model.dtype == "bfloat16",
        kernels=device == "cpu"
        and model.kernels == "auto"
        and model.attention == "sdpa"
        and all(size % TILE == 0 for size in sizes),
        attention=model.attention,
        checkpointing=model.gradient_checkpointing,
        adapted=None if lora is None else lora.targets or tuple(shape.linear),
        rank=0 if lora is None else lora.rank,
        cpu_threads=cpu_threads if ranks == 1 and not model.offloads_weights else 1,
        ranks=ranks,
        optimizers=recipe.optimizers,
        waiting=_waiting(model) if device == "cuda" else (),
    )


def _waiting(model: ModelConfig) -> tuple[str, ...]:
    return ("activations",) * model.offloads_activations + ("weights",) * model.offloads_weights


def load_of(recipe: Recipe, way: ExecutionMode, models: Models) -> Load:
    """What is computed at once at worst."""
    rollout, train = recipe.rollout, recipe.train
    prompt, response = recipe.data.max_prompt_tokens, rollout.max_tokens
    shared = way.kernels and train.packing is not False

    def tokens_of(rows: int) -> int:
        prompts = -(-rows // rollout.samples_per_prompt) if shared else rows
        return prompts * prompt + rows * response

    ways, longest = way.cpu_threads * way.ranks, prompt + response

    def part(rows: int) -> tuple[int, int]:
        """Tokens of a micro-batch of so many sequences, and response tokens among them."""
        budget, own = train.micro_batch_tokens, -(-rows // ways)
        if tokens_of(rows) <= budget * ways and tokens_of(own) <= budget:
            return tokens_of(own), own * response
        room = max(budget, longest)
        if not shared:
            return room, room * response // longest
        most = max(1, max((n for n in range(1, rollout.samples_per_prompt + 1) if tokens_of(n) <= room), default=1))
        return room, room * most * response // tokens_of(most)

    tokens, responses = part(train.minibatch_size)
    scored, scored_responses = part(rollout.sequences)
    parts = max(1, -(-tokens_of(train.minibatch_size) // (tokens * ways)))
    once = models.critic and not models.always_scores_policy and parts == 1 and not way.sharded
    return Load(tokens, responses, parts, scored, scored_responses, longest, once)
