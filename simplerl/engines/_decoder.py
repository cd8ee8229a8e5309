"""What the embedded engine needs of a decoder: a KV cache of its own kind, prefill, and decode steps on it.

Two exist: `TorchDecoder` for every model and device, `simplerl.cpu.FusedDecoder` for what the C kernels support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor


class KVCache(Protocol):
    """Keys and values of a running batch: one row per live sequence, each with a length of its own."""

    @property
    def slots(self) -> int:
        """Number of rows that fit."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row before the cache grows."""
        ...

    def clear(self) -> None:
        """Empty every row."""
        ...

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Move rows `sources` to rows `targets`, which are no longer live; both are int64."""
        ...


CacheT = TypeVar("CacheT", bound=KVCache)


class Decoder(Protocol[CacheT]):
    """Runs a causal language model one token per row at a time."""

    @property
    def best_thread_count(self) -> int | None:
        """Threads that decode fastest side by side. None: one per core."""
        ...

    @property
    def rounds_to_bf16(self) -> bool:
        """True if factors or results are rounded to bfloat16 on the way to the logits."""
        ...

    def refresh(self, head_weight: Tensor, head_bias: Tensor | None) -> None:
        """Read the model's weights again after they were written in place. The head is float32, [V, d] and [V]."""
        ...

    def new_cache(self, slots: int, length: int) -> CacheT:
        """An empty KV cache of `slots` rows, with room for `length` tokens each before it first grows."""
        ...

    def prefill(self, cache: CacheT, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Fill fresh rows of the cache: prompt i, which may be empty, goes to each of `rows[i]`."""
        ...

    def decode(self, cache: CacheT, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits float32 [rows, V] after one more token per row. `tokens` and `positions` are int64 [rows].

        `longest` is the largest position plus one: the caller knows it without a synchronisation with the device.
        """
        ...
