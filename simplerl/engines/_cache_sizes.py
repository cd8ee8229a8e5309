"""Sizes of the embedded engine's KV cache, for code that must not import torch."""

from __future__ import annotations

FIRST_RESPONSE_ROOM = 256
"""Response tokens that fit after the longest prompt before the cache first grows."""

KEY_ALIGNMENT = 8
"""Lengths are multiples of this many keys: masked attention kernels want aligned rows."""


def aligned(length: int, alignment: int = KEY_ALIGNMENT) -> int:
    """The smallest multiple of `alignment` that is at least `length`."""
    return -(-length // alignment) * alignment


def grown(capacity: int, length: int) -> int:
    """Capacity of a full cache after it grew for rows of `length` tokens: half as much again, or what they need."""
    return aligned(max(length, capacity * 3 // 2))
