"""Intervals that say how sure a share is."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: float, n: int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a share (JASA 22, 1927): the p with |p̂ - p| <= z sqrt(p (1 - p) / n).

    Unlike p̂ +- z sqrt(p̂ (1 - p̂) / n) it stays within [0, 1] and has a width at 0 and n successes.
    Raises `ValueError` unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}; needs n >= 1 and 0 <= successes <= n")
    share = successes / n
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # At the ends the bound is exactly 0 or 1; rounding would leave it at 1e-17 off.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)
