"""Decoding through the kernels: weights and cache in the order in which they are read.

Everything is float32 but the factors of products with weights where those are kept as bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simplerl.cpu.ops import run
from simplerl.cpu_sizes import TILE


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


class BlockCache:
    """Keys and values of every layer in the order that the decoding kernel reads them, float32.

    `order` says which slot each row of the batch has, so rows change places without a key being copied. Capacity grows
    by halves as rows get longer, so that a high token limit costs nothing by itself.
    """

    def __init__(self, slots: int, capacity: int, *, layers: int, kv_heads: int, dim: int) -> None:
        self.kv_heads, self.dim, self.capacity = kv_heads, dim, _padded(capacity)
        self.order = torch.arange(slots)
        self.keys = [self._empty(self.dim) for _ in range(layers)]
        self.values = [self._empty(_padded(dim)) for _ in range(layers)]

    @property
    def slots(self) -> int:
        return len(self.order)

    def _empty(self, width: int) -> Tensor:
        return torch.empty(self.slots, self.kv_heads, self.capacity * width)

    def clear(self) -> None:
        """Nothing to do: a row only ever reads what was written for it."""

    def slots_of(self, rows: Sequence[int]) -> Tensor:
        return self.order[torch.tensor(rows)]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Rows take the places of others, which are no longer live."""
        self.order[targets], self.order[sources] = self.order[sources], self.order[targets]

    def reserve(self, length: int) -> None:
        """Room for so many tokens in each row."""
        if length <= self.capacity:
            return
        self.capacity = _padded(max(length, self.capacity * 3 // 2))
        for tensors, width in ((self.keys, self.dim), (self.values, _padded(self.dim))):
            for layer, old in enumerate(tensors):
                tensors[layer] = self._empty(width)
                tensors[layer][..., : old.shape[-1]] = old


def cache_prompt(
    cache: BlockCache, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, *, heads: int
) -> None:
    """Writes a prompt's keys and values, of `qkv` [length, ...] with its `cos` and `sin`, into each of the slots."""
    where = (slots, len(slots), cache.keys[layer], cache.values[layer], cache.capacity)
    run("cache_prompt", qkv, cos, sin, len(qkv), *where, heads, cache.kv_heads, cache.dim)


def panels(weight: Tensor, *, bf16: bool = False) -> Tensor:
    """A linear layer's weight [out, in], both multiples of `TILE`, as [out / TILE, in, TILE]; rounded to bfloat16 as
    [out / TILE, in / 2, TILE, 2]."""
    out, size = weight.shape
    if bf16:
        return weight.bfloat16().reshape(out // TILE, TILE, size // 2, 2).transpose(1, 2).contiguous()
    return weight.reshape(out // TILE, TILE, size).transpose(1, 2).contiguous()


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """`x` [n, in] times a matrix in `panels`: [n, out]."""
    y = x.new_empty(len(x), len(matrix) * TILE)
    run("product", x, matrix, len(x), x.shape[1], y.shape[1], y)
    return y


SIZES = ("hidden", "inner", "heads", "kv_heads", "dim", "capacity", "bf16")


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class DecodingLayer:
    """A layer's weights, its matrices in `panels`; biases may be missing."""

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
        tensors = (getattr(self, name) for name in self.__slots__)
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def decode_layers(
    x: Tensor,
    layers: Sequence[DecodingLayer],
    cache: BlockCache,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    *,
    heads: int,
    eps: float,
    scale: float,
) -> None:
    """Takes one new token per row, `x` [n, hidden] at `positions` [n], through all layers, in place.

    `angles` are cosines and sines by position. The tokens' keys and values are written to the cache.
    """
    inner = layers[0].gate.numel() // x.shape[1]
    bf16 = int(layers[0].gate.dtype == torch.bfloat16)
    shape = _Shape(x.shape[1], inner, heads, cache.kv_heads, cache.dim, cache.capacity, bf16, eps, scale)
    own = zip(layers, cache.keys, cache.values, strict=True)
    places = [each for layer, keys, values in own for each in (*layer.addresses(), keys.data_ptr(), values.data_ptr())]
    weights, sizes = (ctypes.c_void_p * len(places))(*places), ctypes.addressof(shape)
    run("decode_layers", x, ctypes.addressof(weights), len(layers), sizes, *angles, positions, cache.order, len(x))


class DrawState:
    """What the draw of one token per row reads and writes, by its `NAMES`; every tensor is [slots, ...]."""

    NAMES = ("token", "position", "count", "limit", "rule", "temperature", "uniforms", "ids", "logprobs")

    def __init__(self, rows: Any, codes: Tensor, room: int) -> None:
        """`rows` has the tensors, `codes` uint8 [rules, V] says what each token means, `room` tokens fit in a row."""
        places = [getattr(rows, name).data_ptr() for name in self.NAMES]
        self._places = (ctypes.c_void_p * len(places))(*places)
        self._keep, self._codes, self._room = rows, codes, room

    def draw(self, logits: Tensor) -> list[int]:
        """Draws a token for each row of `logits` and stores it; the row's code, +4 at its limit, +8 if not finite."""
        rows, vocabulary = logits.shape
        found = torch.empty(rows, dtype=torch.long)
        run("draw_step", logits, ctypes.addressof(self._places), self._codes, rows, vocabulary, self._room, found)
        return found.tolist()
