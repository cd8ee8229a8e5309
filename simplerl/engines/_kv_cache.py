"""A KV cache of batch slots: one row per live sequence, each with its own length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from simplerl.engines._cache_sizes import aligned, grown


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, kv_heads, capacity, head_dim]."""

    def __init__(self, cache: SlotCache, key_shape: Sequence[int], value_shape: Sequence[int]) -> None:
        super().__init__()
        self._cache = cache
        # Zeros, not uninitialised memory: a masked key has weight 0, and 0 x NaN would still be NaN.
        self.keys = torch.zeros(key_shape, dtype=cache.mask.dtype, device=cache.mask.device)
        self.values = torch.zeros(value_shape, dtype=cache.mask.dtype, device=cache.mask.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one key and value per live row, [rows, kv_heads, 1, head_dim]; returns all that the rows attend to."""
        cache, rows = self._cache, len(key_states)
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            store.view(-1, store.shape[-1]).index_copy_(0, cache.write_index, new.reshape(-1, store.shape[-1]))
        return self.keys[:rows, :, : cache.width], self.values[:rows, :, : cache.width]

    def fill(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the first keys and values of fresh rows, [len(rows), kv_heads, length, head_dim]."""
        self.keys[rows, :, : keys.shape[2]] = keys
        self.values[rows, :, : values.shape[2]] = values

    def move(self, sources: Tensor, targets: Tensor, width: int) -> None:
        self.keys[targets, :, :width] = self.keys[sources, :, :width]
        self.values[targets, :, :width] = self.values[sources, :, :width]

    def grow(self, extra: int) -> None:
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        return self._cache.width

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length


class SlotCache(Cache):
    """The KV cache of a running batch, whose live rows are always the first ones.

    `mask` is additive, [slots, 1, 1, capacity]: 0 on the keys that a row has, -inf elsewhere. Each decode step changes
    one element per row. Capacity grows by half when a row needs more, so a high token limit costs nothing by itself.
    """

    def __init__(
        self,
        slots: int,
        capacity: int,
        shapes: Sequence[tuple[int, int, int]],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`shapes` has (kv_heads, key_dim, value_dim) of each layer; all layers have the same number of heads."""
        capacity = aligned(capacity)
        self.mask = torch.full((slots, 1, 1, capacity), -torch.inf, dtype=dtype, device=device)
        self.width = 0
        """Keys per row that the current step attends to, masked ones included."""
        self.write_index = torch.empty(0, dtype=torch.long, device=device)
        """Index of the current step's keys in a layer flattened to [slots * kv_heads * capacity, head_dim]."""
        layers = [_SlotLayer(self, (slots, h, capacity, k), (slots, h, capacity, v)) for h, k, v in shapes]
        self._head_index = torch.arange(slots * shapes[0][0], device=device).view(slots, -1)
        super().__init__(layers=layers)

    @property
    def slots(self) -> int:
        return len(self.mask)

    @property
    def capacity(self) -> int:
        return self.mask.shape[-1]

    def clear(self) -> None:
        """Empty every row."""
        self.mask.fill_(-torch.inf)
        self.width = 0

    def begin_step(self, positions: Tensor, longest: int) -> Tensor:
        """Prepare to write one key per live row at `positions` [rows]; returns the mask [rows, 1, 1, width].

        `longest` is the largest position plus one: the caller knows it without a synchronisation with the device.
        """
        self._reserve(longest)
        rows = len(positions)
        self.width = aligned(longest)
        self.write_index = (self._head_index[:rows] * self.capacity + positions[:, None]).view(-1)
        mask = self.mask[:rows, :, :, : self.width]
        mask.scatter_(3, positions[:, None, None, None], 0.0)
        return mask

    def fill(self, rows: Tensor, lengths: Tensor, layers: Sequence[tuple[Tensor, Tensor]], longest: int) -> None:
        """Fill fresh rows with the right-padded keys and values of their prompts; no `layers` if all are empty."""
        self._reserve(longest)
        for layer, (keys, values) in zip(self.layers, layers, strict=bool(layers)):
            layer.fill(rows, keys, values)
        known = torch.arange(self.capacity, device=self.mask.device) < lengths[:, None]
        self.mask[rows] = torch.where(known, 0.0, -torch.inf)[:, None, None].to(self.mask.dtype)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows onto others that are no longer live."""
        self.mask[targets] = self.mask[sources]
        for layer in self.layers:
            layer.move(sources, targets, self.width)

    def _reserve(self, length: int) -> None:
        if length <= self.capacity:
            return
        extra = grown(self.capacity, length) - self.capacity
        self.mask = torch.nn.functional.pad(self.mask, (0, extra), value=-torch.inf)
        for layer in self.layers:
            layer.grow(extra)
