"""Sizes of the CPU fast paths for code that must not import torch, which `simplerl.cpu` does."""

from __future__ import annotations

TILE = 16
"""TILE of simd.h: columns of a weight panel and tokens of a block of keys. Weight sizes must be multiples of it."""

MAX_DEFAULT_THREADS = 8
"""Most threads if their number is not set: each holds activations, gradients and a share of a batch."""
