"""Estimated seconds of a step, from a stated model: operations over a share of the peak, bytes over a share of the
bandwidth. It is meant for choosing a placement; a profile of a real step replaces it."""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.estimate.activations import kept
from simplerl.estimate.engine_memory import VLLM_WORKSPACE, Engine
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.learner_memory import Learner, total
from simplerl.estimate.load import ExecutionMode, Models, load_of, models_of, way_of
from simplerl.estimate.shapes import Shape
from simplerl.estimate.steps import updates_per_step

MFU = 0.35
"""Share of the peak that bfloat16 products of a training step reach."""
MFU_FLOAT32 = 0.6
"""The same of float32 products, the head's among them."""
BANDWIDTH = 0.7
"""Share of the memory's bandwidth that decoding and the optimiser reach."""
LINK = 0.5
"""Share of the link between GPUs that gathering and reducing reach."""
NETWORK = 25e9
"""Bytes/s for each GPU between nodes: 400 Gbit/s at half its rate."""
HOST = 25e9
"""Bytes/s between a GPU and the host's memory, one way: PCIe 5 at less than half its rate."""
HOST_MEMORY = 100e9
"""Bytes/s of the host's memory for each GPU, by which an optimiser there takes its steps."""
STORE = 2e9
"""Bytes/s of weights through Ray's store, by one process: to the CPU, serialised, and read again."""
LAUNCH = 6e-4
"""Seconds of a decoding step for each layer that go into starting some 40 kernels from Python."""
VLLM_LAUNCH = 5e-5
"""The same of vLLM, which replays a recorded graph."""
PROMPT = 200
"""Mean tokens of a prompt, where `data.max_prompt_tokens` is no less."""
RESPONSE = 0.25
"""Mean tokens of a response as a share of `rollout.max_tokens`, where nothing better is given."""

ASSUMPTIONS = f"""\
training's bfloat16 products reach {MFU:.0%} of the peak, float32 ones (the head's always) {MFU_FLOAT32:.0%}
decoding and the optimiser reach {BANDWIDTH:.0%} of the memory's bandwidth
a decoding step starts kernels for {LAUNCH * 1e3:g} ms a layer, with vLLM {VLLM_LAUNCH * 1e3:g} ms
sharded layers are gathered beside computation: {LINK:.0%} of the link's rate in one node, else {NETWORK / 1e9:g} GB/s
what waits on the host moves at {HOST / 1e9:g} GB/s, an optimiser there reaches {HOST_MEMORY / 1e9:g} GB/s
weights go through Ray's store at {STORE / 1e9:g} GB/s; grading costs nothing beside the rollout
prompts have {PROMPT} tokens, responses {RESPONSE:.0%} of the limit unless --mean-tokens says otherwise"""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Mean lengths."""

    prompt: float
    response: float


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one step, phase by phase."""

    rollout: float
    score: float
    update: float
    sync_weights: float

    @property
    def step(self) -> float:
        return self.rollout + self.score + self.update + self.sync_weights


def mean_tokens(recipe: Recipe, response: float | None = None) -> Tokens:
    limit = recipe.rollout.max_tokens
    return Tokens(min(PROMPT, recipe.data.max_prompt_tokens), min(limit, response or RESPONSE * limit))


def seconds(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: Tokens) -> Seconds:
    """Of a step where the recipe's `cluster` says; one GPU does everything without."""
    way, models = way_of(recipe, shape, "cuda"), models_of(recipe)
    clock = _Clock(recipe, shape, hardware, tokens, way, models)
    return Seconds(clock.rollout(), clock.score(), clock.update(), clock.sync_weights())


@dataclass(frozen=True, slots=True)
class _Clock:
    recipe: Recipe
    shape: Shape
    hardware: Hardware
    tokens: Tokens
    way: ExecutionMode
    models: Models

    # --- rollout ------------------------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        spread = self.recipe.cluster.ray is not None
        return Engine(self.recipe, self.shape, self.way, self.recipe.cluster.engines if spread else 1)

    def rollout(self) -> float:
        """Prompts once, then steps with every row busy, then a tail: the longest response goes on alone."""
        engine, tokens = self._engine, self.tokens
        responses = -(-self.recipe.rollout.sequences // engine.engines)
        prompts = responses / self.recipe.rollout.samples_per_prompt
        rows = min(self._rows(engine), responses)
        steps = responses * tokens.response / rows
        tail = max(0.0, self.recipe.rollout.max_tokens - tokens.response)
        prefill = self._products(2 * self.shape.layers * self.shape.layer_matrices * prompts * tokens.prompt)
        return prefill + steps * self._decode(engine, rows) + tail * self._decode(engine, 1)

    def _rows(self, engine: Engine) -> float:
        """Rows decoded at once; vLLM's also as many as its cache holds at their mean length."""
        if not engine.vllm:
            return engine.rows
        room = engine.share(self.hardware.gpu.memory) - total(engine.always()) - VLLM_WORKSPACE
        held = engine.token_bytes * (self.tokens.prompt + self.tokens.response / 2)
        return max(1.0, min(engine.rows, room / held))

    def _decode(self, engine: Engine, rows: float) -> float:
        """One token for every row: weights and caches are read, or products computed, whichever takes longer."""
        gpu, shape = self.hardware.gpu, self.shape
        context = self.tokens.prompt + self.tokens.response / 2
        head = (self.way.size if engine.vllm else 4) * shape.head
        read = self.way.size * shape.layers * shape.layer_matrices + head + rows * context * engine.token_bytes
        products = self._products(2 * shape.layers * shape.layer_matrices * rows)
        launch = (VLLM_LAUNCH if engine.vllm else LAUNCH) * shape.layers
        return max(read / (BANDWIDTH * gpu.bandwidth), products) + launch

    # --- learner ------------------------------------------------------------------------------------------------------

    @property
    def _learner(self) -> Learner:
        return Learner(self.shape, self.way, load_of(self.recipe, self.way, self.models), self.models)

    def score(self) -> float:
        """A forward pass of every model that scores."""
        policies = self.models.always_scores_policy + self.models.reference
        bodies = policies + self.models.critic
        sequences = self.recipe.rollout.sequences
        parts = self._parts(sequences)
        computed = bodies * self._body(sequences) + policies * self._head(sequences)
        return sum(max(computed / bodies, self._gather(parts)) for _ in range(bodies)) if bodies else 0.0

    def update(self) -> float:
        """Forward 1, gradients of inputs 1, of weights 1, checkpoints 1 more; the head's logits are formed twice.

        Frozen weights have no gradient. The optimiser reads a gradient, reads and writes a weight and its moments.
        """
        train, sequences = self.recipe.train, self.recipe.rollout.sequences
        again = self.way.checkpointing
        full, frozen = 3 + again, 2 + again
        own = full if self.way.adapted is None else frozen
        body, heads = self._body(sequences), self._head(sequences)
        parts = self._parts(train.minibatch_size) * updates_per_step(self.recipe)
        actor = max(train.ppo_epochs * (own * body + _head_work(self.way) * heads), 3 * self._gather(parts))
        critic = max(train.ppo_epochs * full * body, 3 * self._gather(parts)) if self.models.critic else 0.0
        moved = train.ppo_epochs * (1 + self.models.critic) * self._move(sequences)
        return actor + critic + moved + updates_per_step(self.recipe) * self._optimise()

    def _move(self, sequences: int) -> float:
        """Seconds in which the activations of a rank's sequences go to the host and come back, nothing beside it."""
        if "activations" not in self.way.waiting:
            return 0.0
        shape, whole = self.shape, self.tokens.prompt + self.tokens.response
        layer = 4 * shape.hidden if self.way.checkpointing else kept(shape, self.way, round(whole))
        return 2 * shape.layers * layer * whole * sequences / self.way.ranks / HOST

    def _optimise(self) -> float:
        learner = self._learner
        moved = 12 * (learner.actor + learner.critic) + 2 * learner.moments
        rate = HOST_MEMORY if "weights" in self.way.waiting else BANDWIDTH * self.hardware.gpu.bandwidth
        return moved / self.way.ranks / rate

    def _body(self, sequences: int) -> float:
        """Seconds of the layers' forward pass on each rank: products, and attention to all tokens before."""
        whole, shape = self.tokens.prompt + self.tokens.response, self.shape
        products = 2 * shape.layers * shape.layer_matrices * whole
        attention = 4 * shape.layers * shape.queries * whole * whole / 2
        return self._products((products + attention) * sequences / self.way.ranks)

    def _head(self, sequences: int) -> float:
        """Seconds of the head's forward pass over the responses, in float32."""
        flop = 2 * self.shape.head * self.tokens.response * sequences / self.way.ranks
        return flop / (MFU_FLOAT32 * self.hardware.gpu.float32)

    def _products(self, flop: float) -> float:
        gpu = self.hardware.gpu
        return flop / (MFU * gpu.bfloat16 if self.way.bfloat16 else MFU_FLOAT32 * gpu.float32)

    def _parts(self, sequences: int) -> float:
        """Micro-batches of each rank: as many tokens as are allowed, at least one sequence."""
        whole = self.tokens.prompt + self.tokens.response
        return max(1.0, sequences * whole / max(self.recipe.train.micro_batch_tokens, whole) / self.way.ranks)

    def _gather(self, parts: float) -> float:
        """Seconds in which all weights go once to every rank, for each of the micro-batches; a rank's own from the host
        where they wait there."""
        ranks = self.way.ranks
        own = 4 * self.shape.parameters / ranks / HOST if "weights" in self.way.waiting else 0.0
        if ranks == 1:
            return parts * own
        rate = LINK * self.hardware.gpu.link if self.hardware.nodes == 1 else NETWORK  # Ray spreads the ranks
        return parts * (own + 4 * self.shape.parameters * (ranks - 1) / ranks / rate)

    # --- weight sync --------------------------------------------------------------------------------------------------

    def sync_weights(self) -> float:
        """Weights to the engine: within the GPU's memory, over the link, or in float32 written to the store and read by
        all at once."""
        kind, way, gpu = self.recipe.transfer, self.way, self.hardware.gpu
        if self.recipe.cluster.ray is None or kind == "ipc":
            size = 4 if kind is None else way.size
            return 2 * size * self.shape.parameters / (BANDWIDTH * gpu.bandwidth)
        if kind == "nccl":
            return way.size * self.shape.parameters / (LINK * gpu.link if self.hardware.nodes == 1 else NETWORK)
        return 2 * 4 * self.shape.parameters / STORE


def _head_work(way: ExecutionMode) -> int:
    """Forward passes' worth of the head's work in an update: logits twice, the states' gradient, its own if trained."""
    return 4 if way.adapted is None else 3
