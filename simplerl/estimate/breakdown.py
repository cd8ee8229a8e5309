"""Bytes by purpose, such as "gradients" or "KV cache": how every estimate of memory is given."""

from __future__ import annotations

import math
from collections.abc import Iterable

Breakdown = dict[str, float]
"""Bytes by purpose."""


def total(breakdown: Breakdown) -> float:
    """Bytes of all purposes together."""
    return math.fsum(breakdown.values())


def largest(breakdowns: Iterable[Breakdown]) -> Breakdown:
    """The breakdown with the most bytes in total."""
    return max(breakdowns, key=total)
