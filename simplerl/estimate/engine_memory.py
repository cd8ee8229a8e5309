"""An engine's memory: its copy of the policy, the key-value cache, and what decoding and prompts need for a moment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simplerl.cluster.transfer import CHUNK, CHUNKS
from simplerl.config import Recipe
from simplerl.cpu_sizes import MAX_DEFAULT_THREADS, TILE
from simplerl.engines._cache_sizes import FIRST_RESPONSE_ROOM, aligned, grown
from simplerl.engines.base import EngineConfig
from simplerl.engines.embedded import Config as EmbeddedConfig
from simplerl.engines.vllm import Config as VLLMConfig
from simplerl.environment import GIB
from simplerl.estimate.activations import forward_work
from simplerl.estimate.learner_memory import Parts, largest
from simplerl.estimate.load import ExecutionMode
from simplerl.estimate.shapes import Shape

VLLM_WORKSPACE = 1.5 * GIB
"""Bytes of its share that vLLM keeps for graphs and activations. An assumption."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything an engine's memory follows from."""

    recipe: Recipe
    shape: Shape
    way: ExecutionMode
    engines: int = 1
    threads: int = 1

    @property
    def vllm(self) -> bool:
        return isinstance(self.recipe.engine, VLLMConfig)

    @property
    def kernels(self) -> bool:
        """Whether it decodes through the C kernels: float32 weights, beside them copies of matrices in another order,
        rounded or not, and a float32 cache."""
        return self.way.kernels and not self.vllm

    @property
    def cpu_threads(self) -> int:
        engine = self.recipe.engine
        wanted = engine.cpu_threads if isinstance(engine, EmbeddedConfig) else None
        return wanted or (min(MAX_DEFAULT_THREADS, self.threads) if self.kernels else 1)

    @property
    def rows(self) -> int:
        """Sequences decoded at once."""
        own = -(-self.recipe.rollout.sequences // self.engines)
        engine = self.recipe.engine
        most = engine.max_batch if isinstance(engine, EngineConfig) else own
        return min(max(1, most // self.cpu_threads) * self.cpu_threads, own)

    @property
    def first_capacity(self) -> int:
        """Tokens a row of the cache has room for when the prompts are written."""
        longest, response = self.recipe.data.max_prompt_tokens, self.recipe.rollout.max_tokens
        if self.kernels:
            return aligned(longest, TILE)
        return aligned(longest + min(FIRST_RESPONSE_ROOM, response))

    @property
    def capacity(self) -> int:
        """Tokens a row has room for in the end: the cache grows by halves, and past what is needed."""
        room, needed = self.first_capacity, self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_tokens - 1
        if self.kernels:
            return aligned(needed, TILE)  # what is reserved beyond is never written to, and so no memory
        while room < needed:
            room = grown(room, room + 1)
        return room

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return (4 if self.kernels else self.way.size) * self.shape.cache_elements

    def always(self) -> Parts:
        """Weights; beside them the head in float32, and on a CPU the kernels' copies and what adapters change."""
        shape = self.shape
        size = self.way.size
        if self.kernels:
            biases = 4 * shape.qkv_bias * (shape.queries + 2 * shape.keys)
            copies = shape.layers * (size * shape.layer_matrices + biases) + 4 * shape.head * (shape.vocab % TILE == 0)
            return {"engine copy": 4 * shape.parameters + copies + self._base()}
        head = 4 * shape.head if self.way.bfloat16 and not self.vllm else 0
        return {"engine copy": size * shape.parameters + head + self._base()}

    def _base(self) -> int:
        """The matrices under adapters as they were, in the CPU's memory; stored in float32 at worst."""
        if self.vllm or self.way.device != "cpu":
            return 0
        linear = self.shape.linear
        return 4 * self.shape.layers * sum(math.prod(linear[name]) for name in self.way.adapted or ())

    def cache(self) -> Parts:
        """Of vLLM only what one sequence needs at least; it takes its share of a GPU, see `share`."""
        rows = 1 if self.vllm else self.rows
        capacity = self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_tokens if self.vllm else self.capacity
        return {"KV cache": rows * capacity * self.token_bytes}

    def share(self, memory: float) -> float:
        """Bytes that vLLM takes of a GPU; 0 for other engines."""
        engine = self.recipe.engine
        return engine.gpu_memory * memory if isinstance(engine, VLLMConfig) else 0.0

    def rollout(self) -> Parts:
        """The moment of a rollout that takes the most: prompts, before the cache has grown or, where there are more
        responses than rows, after; or decoding and growing at the end."""
        if self.vllm:
            return self.cache() | {"workspace": VLLM_WORKSPACE}
        rows, again = self.rows, self.rows * self.engines < self.recipe.rollout.sequences
        early = rows * (self.capacity if again else self.first_capacity) * self.token_bytes
        late = self.cache() | {"workspace": max(self._growing(), self._decoding())}
        return largest([{"KV cache": early, "workspace": self._prefill()}, late])

    def _growing(self) -> float:
        """One layer's keys before and after they grow."""
        return self.cache()["KV cache"] / (2 * self.shape.layers) / 1.5

    def _decoding(self) -> float:
        """Logits and what is drawn from them, and attention's scores."""
        shape, rows, sampling = self.shape, self.rows, self.recipe.rollout
        tables = rows * sampling.max_tokens * 16
        if self.kernels:
            return 4 * rows * shape.vocab + tables
        # Logits, probabilities and their sums; top-k and top-p also sort them; C draws from the logits alone.
        drawn = 1 if self.way.device == "cpu" else 3
        copies = 10 if sampling.top_k or sampling.top_p < 1 else drawn
        scores = rows * shape.heads * self.capacity * (2 * self.way.size + 4)
        return max(4 * copies * rows * shape.vocab, scores) + tables

    def _prefill(self) -> float:
        """Prompts in chunks of `engine.prefill_tokens`; their keys and values for every response before they are
        written to the cache. Each lane has its own."""
        prompt, samples = self.recipe.data.max_prompt_tokens, self.recipe.rollout.samples_per_prompt
        engine = self.recipe.engine
        settings = engine if isinstance(engine, EmbeddedConfig) else EmbeddedConfig()
        chunk = max(1, settings.prefill_tokens // max(1, prompt - 1))
        rows = self.rows // self.cpu_threads
        prompts = min(chunk, -(-rows // samples))
        tokens = prompts * (prompt - 1)
        if self.kernels:
            # Input, middle and output of a layer, what attention reads and gives; its matrices in another order.
            d, q, k, m = self.shape.hidden, self.shape.queries, self.shape.keys, self.shape.intermediate
            return self.cpu_threads * (tokens * 4 * (3 * d + 2 * q + 2 * k) + 4 * (3 * d * m + d * (q + 2 * k)))
        copies = min(rows, prompts * samples) * (prompt - 1)
        return tokens * self.token_bytes + max(forward_work(self.shape, self.way, tokens), copies * self.token_bytes)

    def sync_weights(self) -> float:
        """Bytes for a moment, a weight at a time: a cast copy, the head in float32 anew beside the old one; the
        kernels' layers anew."""
        shape = self.shape
        if self.vllm:
            return self.way.size * shape.head + in_chunks(self.recipe, shape, self.way)
        # The first adapters: all of the model is read, and what they do not change is dropped.
        read = 4 * shape.parameters - base if (base := self._base()) else 0
        if self.kernels:
            return max(read, self.way.size * shape.layers * shape.layer_matrices)
        return max(read, 4 * shape.head if self.way.bfloat16 else 0)


def in_chunks(recipe: Recipe, shape: Shape, way: ExecutionMode) -> float:
    """Bytes of weights on their way from GPU to GPU, at either end: with NCCL some chunks, each to the end of a weight;
    with CUDA IPC one that has room for the largest, and there a copy of it."""
    if recipe.transfer is None:
        return 0.0
    largest = way.size * shape.head
    return CHUNKS * (CHUNK + largest) if recipe.transfer == "nccl" else max(CHUNK, largest)
