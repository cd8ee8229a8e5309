"""Sizes of the losses' chunks, for code that must not import torch."""

from __future__ import annotations

MAX_LOGITS = 1 << 26
"""Most logits in memory at a time: 256 MiB in float32. A vocabulary of 152 K gives chunks of 441 tokens."""
