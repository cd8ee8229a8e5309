from math import comb, pi, sqrt, tan

import numpy as np
import pytest
import statsmodels.api as statsmodels
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from simplerl.stats.intervals import Z_95, Estimate, average, difference, mean_by_problem, share, t_quantile, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: the four worked examples of the literature.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_the_published_examples(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_half_worked_by_hand():
    # z = 2, n = 4, p = 1/2: spread 1, centre (1/2 + 1/2) / 2 = 1/2, half sqrt(1 * (1/4 + 1/4)) / 2 = sqrt(1/2) / 2.
    half = sqrt(0.5) / 2
    assert wilson(2, 4, z=2.0) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (170, 500), (1, 500)])
def test_bounds_solve_the_score_equation(successes, n):
    share = successes / n
    for bound in wilson(successes, n):
        assert abs(share - bound) == pytest.approx(Z_95 * sqrt(bound * (1 - bound) / n), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 30, 500])
def test_the_ends_are_exact_and_mirror_each_other(n):
    # With no success the upper bound is z^2 / (n + z^2).
    assert wilson(0, n) == pytest.approx((0.0, Z_95**2 / (n + Z_95**2)), abs=1e-12)
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
        assert 0 <= low <= successes / n <= high <= 1


def test_coverage_averages_to_95_percent():
    n, shares = 100, [i / 200 for i in range(10, 191)]
    intervals = [wilson(k, n) for k in range(n + 1)]

    def coverage(p):
        inside = (k for k, (low, high) in enumerate(intervals) if low <= p <= high)
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside)

    assert sum(map(coverage, shares)) / len(shares) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@pytest.mark.parametrize(("successes", "n"), [(0, 30), (5, 30), (30, 30), (381, 500)])
def test_wilson_agrees_with_scipy(successes, n):
    assert wilson(successes, n) == pytest.approx(
        stats.binomtest(successes, n).proportion_ci(method="wilson"), abs=1e-12
    )


# --- several samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_t_quantiles_of_one_and_two_degrees_worked_by_hand(level):
    # One degree is Cauchy's distribution, P(|T| <= t) = 2 / pi atan t; of two, P(|T| <= t) = t / sqrt(2 + t^2).
    assert t_quantile(1, level) == pytest.approx(tan(pi * level / 2), rel=1e-12)
    assert t_quantile(2, level) == pytest.approx(level * sqrt(2 / (1 - level**2)), rel=1e-12)


@pytest.mark.parametrize(
    ("degrees", "level", "t"),
    # Fisher and Yates, Statistical Tables (6th edition, 1963), table III.
    [(3, 0.95, 3.182), (7, 0.95, 2.365), (29, 0.95, 2.045), (30, 0.999, 3.646), (120, 0.95, 1.980), (120, 0.5, 0.677)],
)
def test_t_quantiles_match_the_printed_table(degrees, level, t):
    assert t_quantile(degrees, level) == pytest.approx(t, abs=5.1e-4)


def test_t_of_many_degrees_is_normal():
    # Hill, Communications of the ACM 13 (1970), algorithm 396: z + (z^3 + z) / (4 n) + O(1 / n^2).
    assert t_quantile(10_000) == pytest.approx(Z_95 + (Z_95**3 + Z_95) / 40_000, abs=1e-7)


def test_t_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0)


def test_one_sample_per_problem_is_wilson():
    values = [1, 0, 0, 1, 1, 0, 1]
    assert mean_by_problem(values, 7) == share(4, 7) == (4 / 7, *wilson(4, 7))


@pytest.mark.parametrize("all_or_none", [0.0, 1.0])
def test_where_no_problem_varies_the_problems_count_not_the_responses(all_or_none):
    assert mean_by_problem([all_or_none] * 30, 30 * 32) == share(30 * all_or_none, 30)


def test_the_effective_size_worked_by_hand():
    # Values 0, 1/2, 1/2, 1: m = 1/2, s^2 = (1/4 + 1/4) / 3 = 1/6, variance 1/24, size (1/4) / (1/24) = 6 of 8.
    t = 3.182446305284263  # 3 degrees of freedom
    assert mean_by_problem([0, 0.5, 0.5, 1], 8) == pytest.approx((0.5, *wilson(3, 6, z=t)))


def test_the_effective_size_is_at_most_the_responses():
    # All problems are half solved: less spread than independent responses would have.
    assert mean_by_problem([0.5] * 4, 8) == pytest.approx((0.5, *wilson(4, 8, z=t_quantile(3))))


def test_the_variance_is_the_cluster_robust_one_of_statsmodels():
    rng = np.random.default_rng(0)
    correct = rng.random((40, 8)) < rng.beta(0.7, 0.9, (40, 1))
    fit = statsmodels.OLS(correct.ravel().astype(float), np.ones(320)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(40), 8)}, use_t=True
    )
    mean, error = fit.params[0], fit.bse[0]
    size = mean * (1 - mean) / error**2
    expected = (mean, *wilson(mean * size, size, z=stats.t.ppf(0.975, 39)))
    assert mean_by_problem(correct.mean(axis=1), 320) == pytest.approx(expected, rel=1e-9)


def test_the_interval_narrows_with_samples_but_not_beyond_the_problems():
    rng = np.random.default_rng(0)
    hard = rng.beta(1, 1, 30)
    few, many = (mean_by_problem(rng.binomial(n, hard) / n, 30 * n) for n in (1, 64))
    wide, narrow = few.high - few.low, many.high - many.low
    assert 0.4 * wide < narrow < 0.8 * wide


def test_problems_in_any_order_give_the_same_interval():
    values = np.random.default_rng(0).binomial(8, 0.4, 50) / 8
    assert mean_by_problem(values, 400) == mean_by_problem(values[::-1], 400)


def test_one_problem_says_little():
    assert mean_by_problem([0.25], 4) == (0.25, *wilson(0.25, 1))


@pytest.mark.parametrize("values", [[], [1.2], [-0.1, 0.5]])
def test_impossible_values_are_refused(values):
    with pytest.raises(ValueError, match="mean_by_problem"):
        mean_by_problem(values, 4)


# --- means and differences --------------------------------------------------------------------------------------------


def test_an_average_worked_by_hand():
    # Below: sqrt(0.03^2 + 0.04^2) / 2 = 0.025; above: sqrt(0.06^2 + 0.08^2) / 2 = 0.05.
    parts = [Estimate(0.2, 0.17, 0.26), Estimate(0.4, 0.36, 0.48)]
    assert average(parts) == pytest.approx((0.3, 0.275, 0.35))


def test_the_average_of_one_is_itself():
    assert average([share(3, 10)]) == pytest.approx(share(3, 10))


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no parts"):
        average([])


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), page 873, table II: method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0000),
    ],
)
def test_newcombe_matches_the_published_examples(first, second, low, high):
    assert difference(share(*first), share(*second))[1:] == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("first", "second"), [((11, 30), (5, 30)), ((386, 500), (262, 500)), ((0, 30), (0, 40))])
def test_newcombe_agrees_with_statsmodels(first, second):
    expected = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    assert difference(share(*first), share(*second))[1:] == pytest.approx(expected, abs=1e-9)
