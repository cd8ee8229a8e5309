"""Decode steps through the kernels: weights and KV cache in the order in which the kernels read them.

Everything is float32, except for the factors of products with weights that are stored as bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simplerl.cpu.ops import run_kernel
from simplerl.cpu_sizes import TILE


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


class BlockCache:
    """A KV cache in blocks of `TILE` tokens, the order that the decoding kernel reads, float32.

    `slot_of_row` is the slot of each batch row: rows change places without a key being copied. Capacity grows by half
    when a row needs more, so a high token limit costs nothing by itself.
    """

    def __init__(self, slots: int, capacity: int, *, layers: int, kv_heads: int, head_dim: int) -> None:
        self.kv_heads, self.head_dim, self.capacity = kv_heads, head_dim, _padded(capacity)
        self.slot_of_row = torch.arange(slots)
        self.keys = [self._empty(head_dim) for _ in range(layers)]
        self.values = [self._empty(_padded(head_dim)) for _ in range(layers)]

    @property
    def slots(self) -> int:
        """Number of batch rows that fit."""
        return len(self.slot_of_row)

    def _empty(self, width: int) -> Tensor:
        return torch.empty(self.slots, self.kv_heads, self.capacity * width)

    def clear(self) -> None:
        """Do nothing: a row only reads keys and values that were written for it."""

    def slots_of(self, rows: Sequence[int]) -> Tensor:
        """The slots of these rows, int64."""
        return self.slot_of_row[torch.tensor(rows)]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Let rows `sources` take the places of rows `targets`, which are no longer live."""
        order = self.slot_of_row
        order[targets], order[sources] = order[sources], order[targets]

    def reserve(self, length: int) -> None:
        """Grow until `length` tokens fit into each row."""
        if length <= self.capacity:
            return
        self.capacity = _padded(max(length, self.capacity * 3 // 2))
        for tensors, width in ((self.keys, self.head_dim), (self.values, _padded(self.head_dim))):
            for layer, old in enumerate(tensors):
                tensors[layer] = self._empty(width)
                tensors[layer][..., : old.shape[-1]] = old


def write_prompt(
    cache: BlockCache, layer_index: int, qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, *, heads: int
) -> None:
    """Write a prompt's keys and values into each of the slots.

    `qkv` [length, (heads + 2 kv_heads) * head_dim] is before rotation, `cos` and `sin` are [length, head_dim].
    """
    keys, values = cache.keys[layer_index], cache.values[layer_index]
    destination = (slots, len(slots), keys, values, cache.capacity, heads, cache.kv_heads, cache.head_dim)
    run_kernel("cache_prompt", qkv, cos, sin, len(qkv), *destination)


def to_panels(weight: Tensor, *, bf16: bool = False) -> Tensor:
    """A copy of a weight [out, in] as panels [out / TILE, in, TILE]; both sizes are multiples of `TILE`.

    With `bf16` it is rounded to bfloat16, as [out / TILE, in / 2, TILE, 2].
    """
    out, size = weight.shape
    if bf16:
        return weight.bfloat16().reshape(out // TILE, TILE, size // 2, 2).transpose(1, 2).contiguous()
    return weight.reshape(out // TILE, TILE, size).transpose(1, 2).contiguous()


def multiply_panels(x: Tensor, panels: Tensor) -> Tensor:
    """`x` [n, in] times a weight in float32 panels: [n, out]."""
    y = x.new_empty(len(x), len(panels) * TILE)
    run_kernel("product", x, panels, len(x), x.shape[1], y.shape[1], y)
    return y


class _Shape(ctypes.Structure):
    """`Shape` of decode.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "inner", "heads", "kv_heads", "dim", "capacity", "bf16")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class PanelWeights:
    """A layer's weights, its matrices in panels. Fields are in the order of `Layer` in decode.c."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def addresses(self) -> list[int]:
        """Addresses of the fields; 0 for a missing bias."""
        tensors = (getattr(self, name) for name in self.__slots__)
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def decode_layers(
    x: Tensor,
    layers: Sequence[PanelWeights],
    cache: BlockCache,
    cos_sin: tuple[Tensor, Tensor],
    positions: Tensor,
    *,
    heads: int,
    eps: float,
    scale: float,
) -> None:
    """Run one new token per row, `x` [n, hidden] at `positions` [n], through all layers, in place.

    `cos_sin` are cosines and sines by position. Writes the new tokens' keys and values to the cache.
    """
    inner = layers[0].gate.numel() // x.shape[1]
    bf16 = int(layers[0].gate.dtype == torch.bfloat16)
    shape = _Shape(x.shape[1], inner, heads, cache.kv_heads, cache.head_dim, cache.capacity, bf16, eps, scale)
    each_layer = zip(layers, cache.keys, cache.values, strict=True)
    pointers = [
        p for layer, keys, values in each_layer for p in (*layer.addresses(), keys.data_ptr(), values.data_ptr())
    ]
    weights = (ctypes.c_void_p * len(pointers))(*pointers)
    model = (ctypes.addressof(weights), len(layers), ctypes.addressof(shape))
    run_kernel("decode_layers", x, *model, *cos_sin, positions, cache.slot_of_row, len(x))


class DrawBuffers(Protocol):
    """State of the batch rows that a draw reads and writes. Every tensor is contiguous, [slots, ...] on the CPU."""

    token: Tensor
    """int64, written: the token that was drawn."""
    position: Tensor
    """int64, incremented: the position of `token`."""
    count: Tensor
    """int64, incremented: tokens drawn so far."""
    limit: Tensor
    """int64: tokens that may be drawn."""
    stop_rule: Tensor
    """int64: row of the token codes."""
    temperature: Tensor
    """float32"""
    uniforms: Tensor
    """float32 [slots, max_tokens]: a random number in [0, 1) for each token."""
    ids: Tensor
    """int64 [slots, max_tokens], written: all tokens drawn."""
    logprobs: Tensor
    """float32 [slots, max_tokens], written: their log-probs."""


class RowDraws:
    """Draws one token per batch row and records it in the rows' state, in one kernel call."""

    FIELDS = ("token", "position", "count", "limit", "stop_rule", "temperature", "uniforms", "ids", "logprobs")
    """Fields of `DrawBuffers` in the order of `Rows` in rows.c."""

    def __init__(self, rows: DrawBuffers, codes: Tensor, max_tokens: int) -> None:
        """`codes` is uint8 [stop rules, V], what each token means; `max_tokens` is the width of the rows' state."""
        pointers = [getattr(rows, name).data_ptr() for name in self.FIELDS]
        self._pointers = (ctypes.c_void_p * len(pointers))(*pointers)
        # The kernel gets addresses: keep the tensors alive.
        self._rows, self._codes, self._max_tokens = rows, codes, max_tokens

    def draw(self, logits: Tensor) -> list[int]:
        """Draw a token for each row of `logits` float32 [n, V] and record it.

        Returns each row's token code, plus 4 if the row is at its limit, plus 8 if its log-prob is not finite.
        """
        n, vocabulary = logits.shape
        row_codes = torch.empty(n, dtype=torch.long)
        state = (ctypes.addressof(self._pointers), self._codes)
        run_kernel("draw_step", logits, *state, n, vocabulary, self._max_tokens, row_codes)
        return row_codes.tolist()
