from math import comb, sqrt

import pytest

from simplerl.analysis.intervals import Z_95, wilson


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
