"""How a recipe's models are run: which models there are, how they compute, and the sizes of their micro-batches."""

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
class RequiredModels:
    """Models that an algorithm needs of the learner, and what it computes with them."""

    critic: bool
    reference: bool
    separate_reference: bool
    """True if the reference has weights of its own. Under LoRA it is the actor without its adapters."""

    scores_policy: bool
    """True if some step computes the policy's log-probs before its first update: with critic warm-up its steps do."""

    always_scores_policy: bool
    """True if every step does."""

    entropy_gradient: bool
    """True if the loss has an entropy bonus."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models in memory, the engine's copy of the policy among them."""
        return ("actor", *("critic",) * self.critic, *("reference",) * self.separate_reference, "engine copy")


@dataclass(frozen=True, slots=True)
class ExecutionMode:
    """How the learner computes, as far as memory and time depend on it."""

    device: Device
    bfloat16: bool
    kernels: bool
    """True if the C kernels run, which they do on a CPU only."""

    attention: str
    checkpointing: bool
    lora_targets: tuple[str, ...] | None
    """Matrices with adapters, the only trained parameters. None: all weights are trained."""

    lora_rank: int
    cpu_threads: int
    ranks: int
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    """The optimizer of each model that the recipe may train."""

    offloaded: tuple[str, ...] = ()
    """What is offloaded to the host's memory: "activations"; "weights", with their gradients and moments."""

    @property
    def sharded(self) -> bool:
        """True if FSDP gathers the layers: from other ranks, or from the host."""
        return self.ranks > 1 or "weights" in self.offloaded

    @property
    def element_bytes(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.bfloat16 else 4

    @property
    def fused(self) -> bool:
        """True if a decoder layer is one operation."""
        return self.kernels and self.lora_targets is None

    def trains(self, matrix: str) -> bool:
        """True if a matrix or its adapter has a gradient, for which the matrix's input is saved."""
        return self.lora_targets is None or matrix in self.lora_targets

    def adapter_parameters(self, shape: Shape) -> int:
        """Parameters of all adapters."""
        return sum(tensor.numel for tensor in self.adapter_tensors(shape))

    def adapter_tensors(self, shape: Shape) -> tuple[TensorSpec, ...]:
        """The tensors of the adapters."""
        matrices = (shape.matrices[name] for name in self.lora_targets or ())
        shapes = [
            factor for inputs, outputs in matrices for factor in ((self.lora_rank, inputs), (outputs, self.lora_rank))
        ]
        return tuple(TensorSpec(factor, in_layer=True) for factor in shapes) * shape.layers


@dataclass(frozen=True, slots=True)
class MicroBatchSizes:
    """Sizes of one thread's micro-batch if every sequence is as long as the recipe allows."""

    tokens: int
    """Tokens in an update."""

    response_tokens: int
    """Response tokens among them, for which logits are computed."""

    per_update: int
    """Micro-batches of an update, one after the other."""

    scored_tokens: int
    """Tokens in scoring, which splits the whole rollout batch."""

    scored_response_tokens: int
    longest_sequence: int
    """Tokens of the longest sequence."""


def required_models(recipe: Recipe) -> RequiredModels:
    """The models that the recipe's algorithm needs."""
    config = recipe.algorithm
    algorithm = plugins.load("algorithms", config.name, config.path).build(config, recipe)
    after_warmup = recipe.train.critic_warmup_steps + 1
    first, later = (
        needs_scoring_pass(recipe, step, needs_old_logprobs=algorithm.needs_old_logprobs) for step in (1, after_warmup)
    )
    return RequiredModels(
        critic=algorithm.needs_critic,
        reference=algorithm.needs_reference,
        separate_reference=algorithm.needs_reference and recipe.model.lora is None,
        scores_policy=first,
        always_scores_policy=later,
        entropy_gradient=bool(getattr(config, "entropy_coef", 0)),
    )


def device_of(recipe: Recipe) -> Device:
    """The device on which the recipe would run on this machine: `auto` is CUDA if NVIDIA's driver is loaded."""
    wanted = recipe.model.device
    if wanted == "auto":
        return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    return wanted


def available_threads() -> int:
    """Threads that torch would use on this machine's CPU."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def execution_mode(recipe: Recipe, shape: Shape, device: Device, threads: int | None = None) -> ExecutionMode:
    """How the learner of a recipe computes on a device. `threads` are the CPU's; None: as many as torch would use."""
    model, lora = recipe.model, recipe.model.lora
    ranks = recipe.cluster.learners if recipe.cluster.ray is not None else 1
    cpu_threads = recipe.train.cpu_threads
    if cpu_threads is None:
        cpu_threads = min(MAX_DEFAULT_THREADS, threads or available_threads()) if device == "cpu" else 1
    sizes = (shape.hidden, shape.query_size, shape.key_size, shape.intermediate)
    return ExecutionMode(
        device=device,
        bfloat16=model.dtype == "bfloat16",
        kernels=device == "cpu"
        and model.kernels == "auto"
        and model.attention == "sdpa"
        and all(size % TILE == 0 for size in sizes),
        attention=model.attention,
        checkpointing=model.gradient_checkpointing,
        lora_targets=None if lora is None else lora.targets or tuple(shape.matrices),
        lora_rank=0 if lora is None else lora.rank,
        cpu_threads=cpu_threads if ranks == 1 and not model.offloads_weights else 1,
        ranks=ranks,
        optimizers=recipe.optimizers,
        offloaded=_offloaded(model) if device == "cuda" else (),
    )


def _offloaded(model: ModelConfig) -> tuple[str, ...]:
    return ("activations",) * model.offloads_activations + ("weights",) * model.offloads_weights


def micro_batch_sizes(recipe: Recipe, mode: ExecutionMode, models: RequiredModels) -> MicroBatchSizes:
    """The largest micro-batches of a recipe."""
    rollout, train = recipe.rollout, recipe.train
    prompt, response = recipe.data.max_prompt_tokens, rollout.max_tokens
    shares_prompts = mode.kernels and train.packing is not False
    workers, longest = mode.cpu_threads * mode.ranks, prompt + response

    def tokens_of(sequences: int) -> int:
        prompts = -(-sequences // rollout.samples_per_prompt) if shares_prompts else sequences
        return prompts * prompt + sequences * response

    def largest_micro_batch(sequences: int) -> tuple[int, int]:
        """Tokens and response tokens of the largest micro-batch of a batch of sequences."""
        budget, share = train.micro_batch_tokens, -(-sequences // workers)
        if tokens_of(sequences) <= budget * workers and tokens_of(share) <= budget:
            return tokens_of(share), share * response
        room = max(budget, longest)
        if not shares_prompts:
            return room, room * response // longest
        fitting = (n for n in range(1, rollout.samples_per_prompt + 1) if tokens_of(n) <= room)
        most = max(fitting, default=1)
        return room, room * most * response // tokens_of(most)

    tokens, response_tokens = largest_micro_batch(train.minibatch_size)
    scored_tokens, scored_response_tokens = largest_micro_batch(rollout.sequences)
    per_update = max(1, -(-tokens_of(train.minibatch_size) // (tokens * workers)))
    return MicroBatchSizes(
        tokens=tokens,
        response_tokens=response_tokens,
        per_update=per_update,
        scored_tokens=scored_tokens,
        scored_response_tokens=scored_response_tokens,
        longest_sequence=longest,
    )
