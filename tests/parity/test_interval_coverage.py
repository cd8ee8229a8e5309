"""How often a 95 % interval holds the truth: counted over every possible outcome, and by drawing.

A discrete outcome cannot give 95 % at each truth, Wilson's interval included. So drawing has to agree with the exact
coverage at each truth, and the exact coverage has to be 95 +- 1 % on average over the truths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from scipy import stats

from simplerl.stats import intervals
from simplerl.stats.intervals import mean_by_problem, share
from simplerl.stats.paired import bootstrap, paired_shares
from simplerl.stats.scores import pass_at_k

pytestmark = pytest.mark.parity

DRAWS = 10_000
SHARES = np.arange(0.05, 0.951, 0.05)


@dataclass(frozen=True)
class Method:
    """The interval of every outcome of `problems` problems, each in one of several states.

    `counts` [O, S]: problems in each state; `cu_seqlens` [O, 2].
    """

    problems: int
    counts: np.ndarray
    cu_seqlens: np.ndarray

    def exact(self, chances: Sequence[float], truth: float) -> float:
        """Coverage when a problem is in each state with these chances."""
        return float(stats.multinomial(self.problems, chances).pmf(self.counts) @ self._holds(truth))

    def drawn(self, chances: Sequence[float], truth: float, rng: np.random.Generator) -> float:
        number = {tuple(row): i for i, row in enumerate(self.counts.tolist())}
        outcomes = rng.multinomial(self.problems, chances, DRAWS).tolist()
        holds = self._holds(truth)
        return float(np.mean([holds[number[tuple(row)]] for row in outcomes]))

    def _holds(self, truth: float) -> np.ndarray:
        return (self.cu_seqlens[:, 0] <= truth + 1e-12) & (truth <= self.cu_seqlens[:, 1] + 1e-12)


def method(problems: int, states: int, interval) -> Method:
    """`interval` makes a (value, low, high) of the number of problems in each state."""
    picks = combinations_with_replacement(range(states), problems)
    counts = [np.bincount(pick, minlength=states).tolist() for pick in picks]
    return Method(problems, np.array(counts), np.array([interval(row)[1:] for row in counts]))


def check(method: Method, truths: Sequence[tuple[Sequence[float], float]], tolerance: float = 0.01) -> float:
    """Drawn coverage is the exact one within its error at each truth; their mean is 95 %. Returns the mean."""
    rng = np.random.default_rng(0)
    exact = [method.exact(chances, truth) for chances, truth in truths]
    for coverage, (chances, truth) in zip(exact, truths, strict=True):
        error = np.sqrt(coverage * (1 - coverage) / DRAWS) + 1 / DRAWS
        assert method.drawn(chances, truth, rng) == pytest.approx(coverage, abs=4 * error), (chances, truth)
    assert np.mean(exact) == pytest.approx(0.95, abs=tolerance)
    return float(np.mean(exact))


# --- one model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problems", [30, 40, 272])
def test_wilson(problems):
    wilson = method(problems, 2, lambda counts: share(counts[1], problems))
    check(wilson, [((1 - p, p), p) for p in SHARES])


def solved(samples: int, p: float, correlation: float) -> np.ndarray:
    """Chances of 0 ... `samples` correct responses when problems differ in how hard they are (beta-binomial)."""
    scale = 1 / correlation - 1
    return stats.betabinom(samples, p * scale, (1 - p) * scale).pmf(np.arange(samples + 1))


@pytest.mark.parametrize(("problems", "samples"), [(30, 2), (20, 4)])
def test_clustered_by_problem(problems, samples):
    values = np.arange(samples + 1) / samples
    clustered = method(
        problems, samples + 1, lambda counts: mean_by_problem(np.repeat(values, counts), problems * samples)
    )
    for correlation in (0.2, 0.6):
        check(clustered, [(solved(samples, p, correlation), p) for p in SHARES])


def test_pass_at_2_of_4():
    values = [pass_at_k(4, correct, 2) for correct in range(5)]

    def interval(counts):
        return mean_by_problem(np.repeat(values, counts), 64)

    chances = [solved(4, p, 0.4) for p in SHARES]
    check(method(16, 5, interval), [(each, float(each @ values)) for each in chances])


@pytest.mark.parametrize("correlation", [0.1, 0.3, 0.6, 0.9])
def test_clustered_with_the_32_samples_of_aime(correlation):
    """Too many outcomes to go through: drawn alone, and the mean over the truths is 95 %.

    It is lower where few problems are ever solved, 86 % at the worst of these: the problems that tell are rare.
    """
    rng = np.random.default_rng(0)
    scale = 1 / correlation - 1
    coverage = []
    for p in SHARES:
        correct = rng.binomial(32, rng.beta(p * scale, (1 - p) * scale, (1_500, 30)))
        found = (mean_by_problem(row, 960) for row in correct / 32)
        coverage.append(np.mean([low <= p <= high for _, low, high in found]))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.85


# --- means and differences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", [lambda a, b: intervals.average([a, b]), intervals.difference])
def test_two_independent_benchmarks(combine):
    """Averages and Newcombe's difference, of 30 and 40 problems."""
    first, second = ([share(k, n) for k in range(n + 1)] for n in (30, 40))
    cu_seqlens = np.array([[combine(a, b)[1:] for b in second] for a in first])
    rng = np.random.default_rng(0)
    exact = []
    for p, q in product(SHARES[::3], SHARES[::2]):
        truth = combine((p, p, p), (q, q, q))[0] if combine is not intervals.difference else p - q
        holds = (cu_seqlens[..., 0] <= truth + 1e-12) & (truth <= cu_seqlens[..., 1] + 1e-12)
        exact.append(stats.binom.pmf(range(31), 30, p) @ holds @ stats.binom.pmf(range(41), 40, q))
        drawn = holds[rng.binomial(30, p, DRAWS), rng.binomial(40, q, DRAWS)].mean()
        assert drawn == pytest.approx(exact[-1], abs=4 * np.sqrt(0.06 / DRAWS))
    assert np.mean(exact) == pytest.approx(0.95, abs=0.01)


PAIRS = [(p, q) for p, q in product(np.arange(0.05, 0.6, 0.09), repeat=2) if p + q < 0.9]
"""Shares of problems gained and lost."""


def test_paired_single_responses():
    tango = method(30, 3, lambda counts: paired_shares(counts[1], counts[2], 30))
    check(tango, [((1 - p - q, p, q), p - q) for p, q in PAIRS])


def test_paired_bootstrap():
    """Problems gain or lose half, as with two responses each."""

    def interval(counts):
        gaps = np.repeat([0.0, 0.5, -0.5], counts)
        return bootstrap(gaps, resamples=2_000)

    check(method(30, 3, interval), [((1 - p - q, p, q), (p - q) / 2) for p, q in PAIRS])
