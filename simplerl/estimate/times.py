"""Estimated seconds of a step, for choosing a placement. `simplerl profile` measures a real step.

Operations run at a fraction of a GPU's peak, bytes move at a fraction of its bandwidth (`ASSUMPTIONS`).
"""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.estimate.activations import saved_per_token
from simplerl.estimate.breakdown import total
from simplerl.estimate.engine_memory import VLLM_WORKSPACE, EngineMemory
from simplerl.estimate.execution import ExecutionMode
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.learner_memory import LearnerMemory
from simplerl.estimate.memory import learner_memory
from simplerl.estimate.shapes import Shape
from simplerl.estimate.steps import updates_per_step

MFU = 0.35
"""Fraction of the peak that bfloat16 products of a training step reach."""
MFU_FLOAT32 = 0.6
"""Fraction of the peak that float32 products reach, those of the head among them."""
MEMORY_EFFICIENCY = 0.7
"""Fraction of a GPU's memory bandwidth that decoding and the optimiser reach."""
LINK_EFFICIENCY = 0.5
"""Fraction of the rate between GPUs of a node that gathering and reducing reach."""
NETWORK_RATE = 25e9
"""Bytes/s of each GPU between nodes: 400 Gbit/s at half its rate."""
HOST_LINK_RATE = 25e9
"""Bytes/s between a GPU and the host's memory, one way: PCIe 5 at less than half its rate."""
HOST_MEMORY_RATE = 100e9
"""Bytes/s of the host's memory for each GPU, for an optimiser whose state is offloaded."""
STORE_RATE = 2e9
"""Bytes/s of one process through Ray's object store: to the CPU, serialised, and read again."""
LAUNCH = 6e-4
"""Seconds per layer of a decoding step for launching some 40 kernels from Python."""
VLLM_LAUNCH = 5e-5
"""Seconds per layer of a decoding step with vLLM, which replays a recorded graph."""
PROMPT_TOKENS = 200
"""Mean tokens of a prompt, if `data.max_prompt_tokens` is not less."""
RESPONSE_FRACTION = 0.25
"""Mean tokens of a response as a fraction of `rollout.max_tokens`, if no better number is given."""

ASSUMPTIONS = (
    f"bfloat16 matrix products in training reach {MFU:.0%} of the peak, float32 ones (the head's always) "
    f"{MFU_FLOAT32:.0%}",
    f"decoding and the optimiser reach {MEMORY_EFFICIENCY:.0%} of the memory bandwidth",
    f"launching kernels takes {LAUNCH * 1e3:g} ms per layer and decoding step, with vLLM {VLLM_LAUNCH * 1e3:g} ms",
    f"layers are gathered during computation, at {LINK_EFFICIENCY:.0%} of the link's rate, between nodes at "
    f"{NETWORK_RATE / 1e9:g} GB/s",
    f"offloaded tensors move at {HOST_LINK_RATE / 1e9:g} GB/s, an optimiser on the host reaches "
    f"{HOST_MEMORY_RATE / 1e9:g} GB/s",
    f"weights go through Ray's object store at {STORE_RATE / 1e9:g} GB/s; grading takes no extra time",
    f"prompts have {PROMPT_TOKENS} tokens, responses {RESPONSE_FRACTION:.0%} of the limit, or --mean-tokens",
)
"""What the estimated times assume, one sentence each."""


@dataclass(frozen=True, slots=True)
class MeanTokens:
    """Mean lengths of prompts and responses."""

    prompt: float
    response: float

    @property
    def sequence(self) -> float:
        """Mean tokens of a prompt with its response."""
        return self.prompt + self.response


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Seconds of the phases of one step."""

    rollout: float
    score: float
    update: float
    weight_sync: float

    @property
    def step(self) -> float:
        """Seconds of all phases, which run one after the other."""
        return self.rollout + self.score + self.update + self.weight_sync


def mean_tokens(recipe: Recipe, response: float | None = None) -> MeanTokens:
    """Assumed mean lengths of a recipe; `response` replaces the assumption for responses."""
    limit = recipe.rollout.max_tokens
    prompt = min(PROMPT_TOKENS, recipe.data.max_prompt_tokens)
    return MeanTokens(prompt, min(limit, response or RESPONSE_FRACTION * limit))


def step_seconds(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: MeanTokens) -> StepSeconds:
    """Seconds of a step with the placement of the recipe's `cluster`; without one, on a single GPU."""
    model = _TimeModel(recipe, shape, hardware, tokens, learner_memory(recipe, shape, "cuda"))
    return StepSeconds(model.rollout(), model.score(), model.update(), model.weight_sync())


@dataclass(frozen=True, slots=True)
class _TimeModel:
    recipe: Recipe
    shape: Shape
    hardware: Hardware
    tokens: MeanTokens
    learner: LearnerMemory

    @property
    def _mode(self) -> ExecutionMode:
        return self.learner.mode

    # --- rollout ------------------------------------------------------------------------------------------------------

    def rollout(self) -> float:
        """Prefill, then decoding steps with all slots in use, then the longest response alone."""
        in_cluster = self.recipe.cluster.ray is not None
        engines = self.recipe.cluster.engines if in_cluster else 1
        engine, tokens = EngineMemory(self.recipe, self.shape, self._mode, engines), self.tokens
        responses = -(-self.recipe.rollout.sequences // engine.engines)
        prompts = responses / self.recipe.rollout.samples_per_prompt
        slots = min(self._slots(engine), responses)
        steps = responses * tokens.response / slots
        alone = max(0.0, self.recipe.rollout.max_tokens - tokens.response)
        prefill = self._products(2 * self._layer_parameters * prompts * tokens.prompt)
        return prefill + steps * self._decoding_step(engine, slots) + alone * self._decoding_step(engine, 1)

    def _slots(self, engine: EngineMemory) -> float:
        """Sequences decoded at once; with vLLM at most as many as its cache holds at mean length."""
        if not engine.vllm:
            return engine.batch_slots
        cache = engine.share(self.hardware.gpu.memory) - total(engine.always()) - VLLM_WORKSPACE
        sequence = engine.token_bytes * (self.tokens.prompt + self.tokens.response / 2)
        return max(1.0, min(engine.batch_slots, cache / sequence))

    def _decoding_step(self, engine: EngineMemory, slots: float) -> float:
        """One token for every slot: reading weights and caches or computing products, whichever takes longer."""
        gpu, shape = self.hardware.gpu, self.shape
        context = self.tokens.prompt + self.tokens.response / 2
        head = (self._mode.element_bytes if engine.vllm else 4) * shape.head_parameters
        read = self._mode.element_bytes * self._layer_parameters + head + slots * context * engine.token_bytes
        products = self._products(2 * self._layer_parameters * slots)
        launch = (VLLM_LAUNCH if engine.vllm else LAUNCH) * shape.layers
        return max(read / (MEMORY_EFFICIENCY * gpu.bandwidth), products) + launch

    # --- learner ------------------------------------------------------------------------------------------------------

    def score(self) -> float:
        """A forward pass of every model that scores."""
        models = self.learner.models
        policies = models.always_scores_policy + models.reference
        passes = policies + models.critic
        sequences = self.recipe.rollout.sequences
        computed = passes * self._body(sequences) + policies * self._head(sequences)
        gathered = self._gather(self._micro_batches(sequences))
        return sum(max(computed / passes, gathered) for _ in range(passes)) if passes else 0.0

    def update(self) -> float:
        """Forward, backward and optimiser steps of an actor and a critic.

        In forward passes' worth of work: forward 1, gradients of inputs 1, gradients of weights 1 (not of frozen ones),
        recomputation 1 with gradient checkpointing. The head's logits are computed twice.
        """
        train, sequences, models = self.recipe.train, self.recipe.rollout.sequences, self.learner.models
        trained_passes, frozen_passes = 3 + self._mode.checkpointing, 2 + self._mode.checkpointing
        actor_passes = trained_passes if self._mode.lora_targets is None else frozen_passes
        body, head = self._body(sequences), self._head(sequences)
        micro_batches = self._micro_batches(train.minibatch_size) * updates_per_step(self.recipe)
        gathered = 3 * self._gather(micro_batches)
        actor = max(train.ppo_epochs * (actor_passes * body + _head_passes(self._mode) * head), gathered)
        critic = max(train.ppo_epochs * trained_passes * body, gathered) if models.critic else 0.0
        offloading = train.ppo_epochs * (1 + models.critic) * self._offload_activations(sequences)
        return actor + critic + offloading + updates_per_step(self.recipe) * self._optimiser_step()

    def _offload_activations(self, sequences: int) -> float:
        """Seconds of moving activations to the host and back, not overlapped with computation."""
        if "activations" not in self._mode.offloaded:
            return 0.0
        shape, length = self.shape, self.tokens.sequence
        layer = 4 * shape.hidden if self._mode.checkpointing else saved_per_token(shape, self._mode, round(length))
        return 2 * shape.layers * layer * length * sequences / self._mode.ranks / HOST_LINK_RATE

    def _optimiser_step(self) -> float:
        """Reading a gradient, reading and writing a weight, and reading and writing its moments."""
        learner = self.learner
        moved = 12 * (learner.actor + learner.critic) + 2 * learner.moments
        offloaded = "weights" in self._mode.offloaded
        rate = HOST_MEMORY_RATE if offloaded else MEMORY_EFFICIENCY * self.hardware.gpu.bandwidth
        return moved / self._mode.ranks / rate

    @property
    def _layer_parameters(self) -> int:
        """Parameters in the matrices of all layers."""
        return self.shape.layers * self.shape.layer_matrix_parameters

    def _body(self, sequences: int) -> float:
        """Seconds of a forward pass of the layers on each rank: matrix products, and attention to earlier tokens."""
        length, shape = self.tokens.sequence, self.shape
        products = 2 * self._layer_parameters * length
        attention = 4 * shape.layers * shape.query_size * length * length / 2
        return self._products((products + attention) * sequences / self._mode.ranks)

    def _head(self, sequences: int) -> float:
        """Seconds of a forward pass of the head over the responses, in float32."""
        flop = 2 * self.shape.head_parameters * self.tokens.response * sequences / self._mode.ranks
        return flop / (MFU_FLOAT32 * self.hardware.gpu.float32)

    def _products(self, flop: float) -> float:
        """Seconds of matrix products."""
        gpu = self.hardware.gpu
        return flop / (MFU * gpu.bfloat16 if self._mode.bfloat16 else MFU_FLOAT32 * gpu.float32)

    def _micro_batches(self, sequences: int) -> float:
        """Micro-batches of each rank: as many tokens as allowed, at least one sequence."""
        length = self.tokens.sequence
        budget = max(self.recipe.train.micro_batch_tokens, length)
        return max(1.0, sequences * length / budget / self._mode.ranks)

    def _gather(self, micro_batches: float) -> float:
        """Seconds of gathering all weights on every rank, once per micro-batch.

        A rank reads its own shard from the host if it is offloaded.
        """
        ranks = self._mode.ranks
        from_host = 4 * self.shape.parameters / ranks / HOST_LINK_RATE if "weights" in self._mode.offloaded else 0.0
        if ranks == 1:
            return micro_batches * from_host
        return micro_batches * (from_host + 4 * self.shape.parameters * (ranks - 1) / ranks / self._between_gpus)

    @property
    def _between_gpus(self) -> float:
        """Bytes/s between GPUs. Ray spreads ranks over nodes, so with several nodes the network limits it."""
        return LINK_EFFICIENCY * self.hardware.gpu.link if self.hardware.nodes == 1 else NETWORK_RATE

    # --- weight sync --------------------------------------------------------------------------------------------------

    def weight_sync(self) -> float:
        """Weights to the engines: a copy within a GPU, a transfer between GPUs, or float32 weights through the store,
        which all engines read at once."""
        kind, gpu, parameters = self.recipe.transfer, self.hardware.gpu, self.shape.parameters
        if self.recipe.cluster.ray is None or kind == "ipc":
            size = 4 if kind is None else self._mode.element_bytes
            return 2 * size * parameters / (MEMORY_EFFICIENCY * gpu.bandwidth)
        if kind == "nccl":
            return self._mode.element_bytes * parameters / self._between_gpus
        return 2 * 4 * parameters / STORE_RATE


def _head_passes(mode: ExecutionMode) -> int:
    """Forward passes' worth of the head's work in an update: logits twice, gradients of states, of trained weights."""
    return 4 if mode.lora_targets is None else 3
