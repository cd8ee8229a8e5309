"""An engine's memory: its copy of the policy, the KV cache, and the workspace of prefill and decoding."""

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
from simplerl.estimate.activations import forward_workspace
from simplerl.estimate.breakdown import Breakdown, largest
from simplerl.estimate.execution import ExecutionMode
from simplerl.estimate.shapes import Shape

VLLM_WORKSPACE = 1.5 * GIB
"""Bytes of its share that vLLM keeps for graphs and activations. An assumption."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Memory of one of `engines` engines. An engine that is neither vLLM nor embedded is taken for an embedded one."""

    recipe: Recipe
    shape: Shape
    mode: ExecutionMode
    engines: int = 1
    threads: int = 1

    @property
    def vllm(self) -> bool:
        """True if the engine is vLLM."""
        return isinstance(self.recipe.engine, VLLMConfig)

    @property
    def kernels(self) -> bool:
        """True if the C kernels decode.

        They use float32 weights, copies of the matrices in another order, and a float32 cache.
        """
        return self.mode.kernels and not self.vllm

    @property
    def cpu_threads(self) -> int:
        """Threads that decode side by side, each with a share of the batch."""
        engine = self.recipe.engine
        wanted = engine.cpu_threads if isinstance(engine, EmbeddedConfig) else None
        return wanted or (min(MAX_DEFAULT_THREADS, self.threads) if self.kernels else 1)

    @property
    def batch_slots(self) -> int:
        """Sequences decoded at once."""
        own = -(-self.recipe.rollout.sequences // self.engines)
        engine = self.recipe.engine
        most = engine.max_batch if isinstance(engine, EngineConfig) else own
        return min(max(1, most // self.cpu_threads) * self.cpu_threads, own)

    @property
    def first_capacity(self) -> int:
        """Tokens for which each slot of the cache has room after prefill."""
        prompt, response = self.recipe.data.max_prompt_tokens, self.recipe.rollout.max_tokens
        if self.kernels:
            return aligned(prompt, TILE)
        return aligned(prompt + min(FIRST_RESPONSE_ROOM, response))

    @property
    def capacity(self) -> int:
        """Tokens for which each slot has room at the end, after the cache has grown."""
        capacity = self.first_capacity
        needed = self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_tokens - 1
        if self.kernels:
            return aligned(needed, TILE)  # pages that are reserved beyond and never written to take no memory
        while capacity < needed:
            capacity = grown(capacity, capacity + 1)
        return capacity

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return (4 if self.kernels else self.mode.element_bytes) * self.shape.kv_numbers

    def always(self) -> Breakdown:
        """Weights, and beside them the head in float32 or the kernels' copies."""
        shape, size = self.shape, self.mode.element_bytes
        if self.kernels:
            biases = 4 * shape.qkv_bias * (shape.query_size + 2 * shape.key_size)
            layers = shape.layers * (size * shape.layer_matrix_parameters + biases)
            head = 4 * shape.head_parameters * (shape.vocab % TILE == 0)
            return {"engine copy": 4 * shape.parameters + layers + head + self._base_matrices()}
        head = 4 * shape.head_parameters if self.mode.bfloat16 and not self.vllm else 0
        return {"engine copy": size * shape.parameters + head + self._base_matrices()}

    def _base_matrices(self) -> int:
        """Bytes of the matrices without their adapters, kept in a CPU's memory; at most float32."""
        if self.vllm or self.mode.device != "cpu":
            return 0
        matrices = self.shape.matrices
        return 4 * self.shape.layers * sum(math.prod(matrices[name]) for name in self.mode.lora_targets or ())

    def cache(self) -> Breakdown:
        """The KV cache; for vLLM the least it needs, a single sequence. See `share` for what it takes of a GPU."""
        slots = 1 if self.vllm else self.batch_slots
        longest = self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_tokens
        return {"KV cache": slots * (longest if self.vllm else self.capacity) * self.token_bytes}

    def share(self, memory: float) -> float:
        """Bytes that vLLM takes of a GPU with this memory; 0 for other engines."""
        engine = self.recipe.engine
        return engine.gpu_memory * memory if isinstance(engine, VLLMConfig) else 0.0

    def rollout(self) -> Breakdown:
        """The peak of a rollout, beside what is always held.

        It is reached in prefill or at the end of decoding. If there are more responses than slots, prompts also come
        after the cache has grown.
        """
        if self.vllm:
            return self.cache() | {"workspace": VLLM_WORKSPACE}
        slots = self.batch_slots
        refills = slots * self.engines < self.recipe.rollout.sequences
        capacity = self.capacity if refills else self.first_capacity
        prefill = {"KV cache": slots * capacity * self.token_bytes, "workspace": self._prefill()}
        return largest([prefill, self.cache() | {"workspace": max(self._growing(), self._decoding())}])

    def _growing(self) -> float:
        """Bytes of one layer's keys, which exist twice while they grow."""
        return self.cache()["KV cache"] / (2 * self.shape.layers) / 1.5

    def _decoding(self) -> float:
        """Bytes of the logits and of sampling from them, or of attention scores."""
        shape, slots, sampling = self.shape, self.batch_slots, self.recipe.rollout
        results = slots * sampling.max_tokens * 16
        if self.kernels:
            return 4 * slots * shape.vocab + results
        # Logits, probabilities and their sums. Top-k and top-p sort them too; on a CPU C samples from the logits alone.
        sampled = 1 if self.mode.device == "cpu" else 3
        copies = 10 if sampling.top_k or sampling.top_p < 1 else sampled
        scores = slots * shape.heads * self.capacity * (2 * self.mode.element_bytes + 4)
        return max(4 * copies * slots * shape.vocab, scores) + results

    def _prefill(self) -> float:
        """Bytes of one prefill pass, of `engine.prefill_tokens` tokens in each thread.

        Keys and values are copied for every response before they are written to the cache.
        """
        prompt, samples = self.recipe.data.max_prompt_tokens, self.recipe.rollout.samples_per_prompt
        engine = self.recipe.engine
        settings = engine if isinstance(engine, EmbeddedConfig) else EmbeddedConfig()
        most_prompts = max(1, settings.prefill_tokens // max(1, prompt - 1))
        slots = self.batch_slots // self.cpu_threads
        prompts = min(most_prompts, -(-slots // samples))
        tokens = prompts * (prompt - 1)
        if self.kernels:
            # Input, middle and output of a layer, input and output of attention; its matrices in another order.
            d, m = self.shape.hidden, self.shape.intermediate
            q, k = self.shape.query_size, self.shape.key_size
            return self.cpu_threads * (tokens * 4 * (3 * d + 2 * q + 2 * k) + 4 * (3 * d * m + d * (q + 2 * k)))
        copies = min(slots, prompts * samples) * (prompt - 1) * self.token_bytes
        return tokens * self.token_bytes + max(forward_workspace(self.shape, self.mode, tokens), copies)

    def weight_sync(self) -> float:
        """Peak extra bytes during weight sync, which copies one tensor at a time.

        A cast copy; the head in float32, new beside old; or the kernels' copies, new beside old.
        """
        shape = self.shape
        if self.vllm:
            return self.mode.element_bytes * shape.head_parameters + transfer_buffers(self.recipe, shape, self.mode)
        # With the first adapters the whole model is read; matrices without adapters are dropped.
        base = self._base_matrices()
        read = 4 * shape.parameters - base if base else 0
        if self.kernels:
            return max(read, self.mode.element_bytes * shape.layers * shape.layer_matrix_parameters)
        return max(read, 4 * shape.head_parameters if self.mode.bfloat16 else 0)


def transfer_buffers(recipe: Recipe, shape: Shape, mode: ExecutionMode) -> float:
    """Bytes of the buffers of a direct weight transfer, at either end.

    NCCL has several chunks, each completed by a whole tensor. CUDA IPC has one buffer with room for the largest tensor,
    and the receiver copies it.
    """
    if recipe.transfer is None:
        return 0.0
    largest_tensor = mode.element_bytes * shape.head_parameters
    return CHUNKS * (CHUNK + largest_tensor) if recipe.transfer == "nccl" else max(CHUNK, largest_tensor)
