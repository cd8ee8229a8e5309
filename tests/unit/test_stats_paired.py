from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats import contingency_tables

from simplerl.stats.intervals import Z_95
from simplerl.stats.paired import bootstrap, mcnemar, paired_shares

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (6, 0, 2 / 64),  # 2 x (1/2)^6
        (5, 0, 2 / 32),
        (1, 7, 2 * (1 + 8) / 256),  # 2 x (C(8,0) + C(8,1)) / 2^8
    ],
)
def test_mcnemar_worked_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == p


@pytest.mark.parametrize(("gained", "lost"), [(10, 4), (0, 9), (120, 80), (700, 640), (15, 15), (2_500, 2_400)])
def test_mcnemar_is_the_sum_in_whole_numbers(gained, lost):
    n = gained + lost
    chosen = [1]  # C(n, 0), C(n, 1), ...
    for k in range(min(gained, lost)):
        chosen.append(chosen[-1] * (n - k) // (k + 1))
    exact = min(Fraction(1), Fraction(2 * sum(chosen), 2**n))
    assert mcnemar(gained, lost) == pytest.approx(float(exact), rel=1e-11)


def test_mcnemar_agrees_with_statsmodels():
    assert mcnemar(10, 4) == pytest.approx(contingency_tables.mcnemar([[50, 10], [4, 30]], exact=True).pvalue, rel=1e-9)


def test_tango_matches_the_published_example():
    # Airway hyper-responsiveness, 1 against 7 of 21: Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
    assert paired_shares(1, 7, 21) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [1, 8, 30, 500])
def test_tango_without_a_difference_has_a_width(n):
    bound = Z_95**2 / (n + Z_95**2)
    assert paired_shares(0, 0, n) == pytest.approx((0, -bound, bound), abs=1e-9)


def test_tango_at_the_ends():
    assert paired_shares(30, 0, 30).high == pytest.approx(1.0)
    assert paired_shares(0, 30, 30).low == pytest.approx(-1.0)
    assert paired_shares(4, 9, 40) == pytest.approx([-x for x in (paired_shares(9, 4, 40)[i] for i in (0, 2, 1))])


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 4, 40), (3, 0, 30), (60, 20, 272)])
def test_tango_bounds_solve_the_score_equation(gained, lost, n):
    """The share of lost problems that makes the counts likeliest at the bound is searched for, not computed."""

    def score(delta):
        def unlikely(q):
            shares = (q + delta, q, 1 - 2 * q - delta)
            counts = (gained, lost, n - gained - lost)
            return -sum(c * np.log(s) for c, s in zip(counts, shares, strict=True) if c)

        span = (max(0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12)
        q = optimize.minimize_scalar(unlikely, bounds=span, method="bounded", options={"xatol": 1e-13}).x
        return (gained - lost - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))

    _, low, high = paired_shares(gained, lost, n)
    assert (score(low), score(high)) == pytest.approx((Z_95, -Z_95), abs=1e-4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_pairs_are_refused(gained, lost, n):
    with pytest.raises(ValueError, match="paired_shares"):
        paired_shares(gained, lost, n)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_the_bootstrap_is_the_same_in_any_order_and_another_with_another_seed():
    gaps = np.random.default_rng(0).normal(size=30).round(2)
    assert bootstrap(gaps) == bootstrap(gaps[::-1]) == bootstrap(list(gaps))
    assert bootstrap(gaps) != bootstrap(gaps, seed=1)
    assert bootstrap(-gaps).value == pytest.approx(-bootstrap(gaps).value)


def test_the_bootstrap_of_two_problems_worked_by_hand():
    # Two problems, gaps 0 and 1: the resampled mean is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap([0.0, 1.0]) == (0.5, 0.0, 1.0)


def test_the_bootstrap_has_the_width_of_the_t_interval():
    gaps = np.random.default_rng(1).normal(size=30)
    value, low, high = bootstrap(gaps, resamples=100_000)
    t = stats.t(29, gaps.mean(), stats.sem(gaps)).interval(0.95)
    assert value == pytest.approx(gaps.mean())
    assert high - low == pytest.approx(t[1] - t[0], rel=0.03)


def test_the_bootstrap_agrees_with_scipy_at_its_percentiles():
    gaps = np.random.default_rng(2).choice([-1, -0.5, 0, 0.25, 1], size=40)
    tail = stats.norm.cdf(-np.sqrt(40 / 39) * stats.t.ppf(0.975, 39))
    other = stats.bootstrap(
        (gaps,), np.mean, confidence_level=1 - 2 * tail, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert bootstrap(gaps, resamples=20_000)[1:] == pytest.approx((other.low, other.high), abs=0.015)


def test_the_bootstrap_draws_from_all_resamples_alike():
    """Four problems: the distribution of the mean is that of all 4^4 draws."""
    gaps = [-1.0, 0.0, 0.5, 1.0]
    draws = sorted(np.mean(draw) for draw in product(gaps, repeat=4))
    tail = stats.norm.cdf(-np.sqrt(4 / 3) * stats.t.ppf(0.975, 3))
    low, high = np.quantile(draws, [tail, 1 - tail])
    assert bootstrap(gaps, resamples=50_000)[1:] == pytest.approx((low, high), abs=0.05)


def test_one_problem_is_too_few():
    with pytest.raises(ValueError, match="2 at least"):
        bootstrap([0.5])
