"""The smallest true difference a benchmark of a given size shows: found in 4 of 5 comparisons, at the 5 % level."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import sqrt

import numpy as np

from simplerl.formatting import points
from simplerl.stats.intervals import Z_95

POWER = 0.80
ALPHA = 0.05
Z_POWER = 0.8416212335729143
"""The 80 % point of the standard normal distribution."""

FEWEST = 6
"""Discordant problems that a significant result takes: all of 6 have p = 2 / 2^6 < 5 %, all of 5 have 2 / 2^5 > 5 %."""


@lru_cache(maxsize=1024)
def detectable_paired(problems: int, discordant: float = 0.0) -> float | None:
    """Two models answer the same problems once each: the smallest difference that McNemar's exact test finds.

    `discordant` is the share of problems that one of the two solves and the other does not. A difference above it
    needs more of them: then every such problem speaks for the better model, the best case there is.
    None where no difference is found in 4 of 5 comparisons, as with fewer than 6 problems.
    """
    return _smallest(lambda delta: power_paired(problems, delta, max(discordant, delta)))


def power_paired(problems: int, delta: float, discordant: float) -> float:
    """Chance that McNemar's exact test rejects at 5 %, at a true difference and a share of discordant problems.

    Exact: over the number of discordant problems, and how many of them the better model solves.
    """
    from scipy.special import bdtr, bdtrc

    p_better = 0.5 * (1 + delta / discordant)
    numbers, significant = np.arange(FEWEST, problems + 1), _significant(problems)
    chances = np.diff(bdtr(np.arange(FEWEST - 1, problems + 1), problems, discordant))
    rejected = bdtr(significant - 1, numbers, p_better) + bdtrc(numbers - significant, numbers, p_better)
    return float(chances @ rejected)


@lru_cache(maxsize=256)
def _significant(most: int) -> np.ndarray:
    """How many counts of the rarer side, from 0 on, are significant in FEWEST ... `most` tosses of a fair coin.

    Significant are those with a tail of ALPHA / 2 at most.
    """
    from scipy.special import bdtrik

    return np.floor(bdtrik(ALPHA / 2, np.arange(FEWEST, most + 1), 0.5)) + 1


def detectable_unpaired(problems: int, others: int, accuracy: float) -> float | None:
    """Different problems, or one side without responses: the smallest gain or loss from `accuracy` that is found.

    Normal approximation with the variance of both shares (Fleiss, Statistical Methods for Rates and Proportions,
    2nd edition, 3.2), towards 50 %, where there is more room. None where there is not room enough.
    """
    start = min(accuracy, 1 - accuracy)
    return _smallest(lambda delta: _power_unpaired(problems, others, start, delta), 1 - start)


def _power_unpaired(n: int, m: int, p: float, delta: float) -> float:
    """80 % or more where the difference is large enough; only its side of 80 % is exact."""
    q = p + delta
    pooled = (n * p + m * q) / (n + m)
    null = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    true = sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return 1.0 if delta >= Z_95 * null + Z_POWER * true else 0.0


def detectable_from_interval(low: float, high: float) -> float:
    """From a difference's interval: its standard error times 1.96 + 0.84 (arXiv:2411.00640, section 5)."""
    return (high - low) / (2 * Z_95) * (Z_95 + Z_POWER)


def _smallest(power: Callable[[float], float], most: float = 1.0, exact: float = 1e-4) -> float | None:
    """The smallest difference with enough power, which must not fall as the difference grows."""
    low, high = 0.0, most
    if power(high) < POWER:
        return None
    while high - low > exact:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def size_in_words(name: str, problems: int) -> str:
    """What a benchmark of this size can show with one response per problem: "aime24: 30 problems, so ..."."""
    paired, unpaired = detectable_paired(problems), detectable_unpaired(problems, problems, 0.5)
    size = f"{name}: {problems:,} problems, so one problem is {100 / problems:.1f} points"
    if paired is None:
        return f"{size}; too few to show any difference at the 5 % level"
    apart = "none" if unpaired is None else f"{points(unpaired, 0)} points"
    return (
        f"{size}; with one response each, two models that differ by less than {points(paired, 0)} points cannot be "
        f"told apart reliably (80 % power, 5 % level, paired at best; {apart} around 50 % where only accuracies are "
        "known)"
    )
