"""Intervals that say how sure a share is. All are of 95 % and treat the problems as drawn from many like them.

| what | method |
|---|---|
| one response per problem | Wilson's score interval |
| several responses per problem, pass@k | Wilson's interval on the effective sample size, clustered by problem |
| means and differences of independent estimates | the distances to the bounds add in quadrature (MOVER) |

Differences of two models on the same problems: `simplerl.stats.paired`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


class Interval(NamedTuple):
    low: float
    high: float


class Estimate(NamedTuple):
    """A number and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: float, z: float = Z_95) -> Interval:
    """Wilson's score interval of a share (JASA 22, 1927): the p with |p̂ - p| <= z sqrt(p (1 - p) / n).

    Unlike p̂ +- z sqrt(p̂ (1 - p̂) / n) it stays within [0, 1] and has a width at 0 and n successes.
    Neither count has to be whole. Raises `ValueError` unless 0 <= successes <= n and n >= 1.
    """
    # Not scipy's `binomtest`: it takes whole counts only, and scipy.stats takes 0.5 s to import.
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


def share(successes: float, n: float) -> Estimate:
    """A share of independent problems with Wilson's interval."""
    return Estimate(successes / n, *wilson(successes, n))


def mean_by_problem(values: Sequence[float] | np.ndarray, responses: int) -> Estimate:
    """The mean over problems of values within [0, 1]: each is a problem's share of correct responses, or its pass@k.

    `values` has one entry per problem; `responses` are those of all problems together. The variance of the mean is
    clustered by problem, s^2 / P (arXiv:2411.00640, section 2.2, with equal weight for each problem). It enters
    Wilson's interval through the effective sample size m (1 - m) / (s^2 / P) and the t quantile of P - 1 degrees of
    freedom (Franco et al., J. Survey Statistics and Methodology 7, 2019), which holds bounds within [0, 1].

    The effective size lies between P (each problem always or never solved; so at 0 % and 100 %, where s is 0 and
    says nothing) and the number of responses. Values of 0 and 1 alone give `wilson` on P problems.
    Raises `ValueError` for no values or values outside [0, 1].
    """
    array = np.sort(np.asarray(values, dtype=float))
    if array.size == 0 or array[0] < 0 or array[-1] > 1:
        raise ValueError(f"mean_by_problem: {array.size} values; needs one at least, all within [0, 1]")
    mean, problems = float(array.mean()), array.size
    if problems == 1 or np.isin(array, (0, 1)).all():
        return Estimate(mean, *wilson(mean * problems, problems))
    variance = float(array.var(ddof=1)) / problems
    size = mean * (1 - mean) / variance if variance > 0 else responses
    size = min(max(size, problems), max(responses, problems))
    return Estimate(mean, *wilson(mean * size, size, t_quantile(problems - 1)))


# --- several estimates ------------------------------------------------------------------------------------------------


def average(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each with the same weight.

    The distances from each value to its bounds add in quadrature, below and above apart (MOVER; Zou and Donner,
    Statistics in Medicine 27, 2008), so a part at 0 % adds the width its interval has.
    """
    if not parts:
        raise ValueError("average: no parts")
    values, lows, highs = np.array(parts, dtype=float).T
    below, above = (float(np.sqrt(np.square(gap).sum()) / len(parts)) for gap in (values - lows, highs - values))
    mean = float(values.mean())
    return Estimate(mean, mean - below, mean + above)


def difference(after: Estimate, before: Estimate) -> Estimate:
    """after - before of independent estimates.

    From two Wilson intervals this is Newcombe's interval (Statistics in Medicine 17, 1998, page 873, method 10).
    """
    gap = after.value - before.value
    below = sqrt((after.value - after.low) ** 2 + (before.high - before.value) ** 2)
    above = sqrt((after.high - after.value) ** 2 + (before.value - before.low) ** 2)
    return Estimate(gap, gap - below, gap + above)


# --- Student's t ------------------------------------------------------------------------------------------------------


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level."""
    # Imported here: scipy.special takes 0.15 s, and most reports need no t.
    from scipy.special import stdtrit

    if degrees < 1:
        raise ValueError(f"t_quantile: {degrees} degrees of freedom; needs 1 at least")
    return float(stdtrit(degrees, (1 + level) / 2))
