import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import power_proportions_2indep

from simplerl.stats import power
from simplerl.stats.paired import mcnemar
from simplerl.stats.power import (
    POWER,
    detectable_from_interval,
    detectable_paired,
    detectable_unpaired,
    power_paired,
    size_in_words,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("problems", "delta", "discordant"), [(8, 0.5, 0.6), (12, 0.3, 0.3), (30, 0.2, 0.35)])
def test_power_is_the_sum_over_all_outcomes(problems, delta, discordant):
    better, worse = (discordant + delta) / 2, (discordant - delta) / 2
    chances = stats.multinomial(problems, [better, worse, 1 - discordant])
    rejected = sum(
        chances.pmf([gained, lost, problems - gained - lost])
        for gained in range(problems + 1)
        for lost in range(problems + 1 - gained)
        if mcnemar(gained, lost) <= 0.05
    )
    assert power_paired(problems, delta, discordant) == pytest.approx(rejected, abs=1e-12)


def test_power_of_seven_problems_worked_by_hand():
    # All 7 differ, 7 of 8 times for the better model. Significant are 7 : 0 and 0 : 7, with p = 2 / 128; 6 : 1 has
    # p = 2 (1 + 7) / 128 = 0.125.
    assert power_paired(7, 0.75, 1.0) == pytest.approx((7 / 8) ** 7 + (1 / 8) ** 7, abs=1e-15)


def test_significant_counts_are_those_of_whole_numbers():
    """Of n tosses, s counts of the rarer side are significant: 2 (C(n, 0) + ... + C(n, s - 1)) / 2^n <= 1 / 20."""
    found = power._significant(1_000)
    assert len(found) == 995
    for tosses, significant in enumerate(found, start=power.FEWEST):
        row, tail, expected = 1, 1, 0
        while 40 * tail <= 2**tosses:
            expected += 1
            row = row * (tosses - expected + 1) // expected
            tail += row
        assert significant == expected, tosses


def test_six_problems_show_what_solves_all_of_them():
    # Six of six are needed (2 / 64 < 0.05), which happens with chance delta^6.
    assert detectable_paired(6) == pytest.approx(POWER ** (1 / 6), abs=1e-4)


def test_five_problems_show_nothing():
    assert detectable_paired(5) is None


def test_thirty_problems_show_twenty_five_points_at_best():
    # At best every discordant problem speaks for the better model, and six are needed.
    delta = detectable_paired(30)
    assert delta == pytest.approx(0.2508, abs=1e-4)
    assert stats.binom.sf(5, 30, delta) == pytest.approx(POWER, abs=1e-3)


@pytest.mark.parametrize(("problems", "discordant"), [(40, 0.2), (272, 0.15), (1319, 0.1)])
def test_the_smallest_difference_is_where_the_power_is_reached(problems, discordant):
    delta = detectable_paired(problems, discordant)
    assert power_paired(problems, delta, max(discordant, delta)) >= POWER
    assert power_paired(problems, delta - 3e-3, max(discordant, delta - 3e-3)) < POWER


def test_more_discordance_hides_more():
    found = [detectable_paired(500, share) for share in (0.0, 0.05, 0.1, 0.3, 0.6)]
    assert found == sorted(found)
    # Connor, Biometrics 43 (1987): (1.96 sqrt(d) + 0.84 sqrt(d - delta^2))^2 / delta^2 problems; exact tests need more.
    delta = found[3]
    needed = (1.96 * np.sqrt(0.3) + 0.8416 * np.sqrt(0.3 - delta**2)) ** 2 / delta**2
    assert needed <= 500 <= 1.08 * needed


@pytest.mark.parametrize(("n", "m", "accuracy"), [(30, 30, 0.2), (500, 500, 0.5), (40, 83, 0.525), (1319, 1319, 0.1)])
def test_the_unpaired_difference_agrees_with_statsmodels(n, m, accuracy):
    delta = detectable_unpaired(n, m, accuracy)
    start = min(accuracy, 1 - accuracy)
    found = power_proportions_2indep(delta, start, nobs1=m, ratio=n / m, alpha=0.05, return_results=False)
    assert found == pytest.approx(POWER, abs=2e-3)


def test_the_unpaired_difference_goes_to_the_middle():
    assert detectable_unpaired(100, 100, 0.9) == detectable_unpaired(100, 100, 0.1)
    assert detectable_unpaired(2, 2, 0.5) is None


def test_from_an_interval_it_is_its_standard_error_times_2_8():
    assert detectable_from_interval(-0.1 * 1.96, 0.1 * 1.96) == pytest.approx(0.28, abs=1e-3)


def test_the_size_of_aime_in_words():
    assert size_in_words("aime24", 30) == (
        "aime24: 30 problems, so one problem is 3.3 points; with one response each, two models that differ by less "
        "than 25 points cannot be told apart reliably (80 % power, 5 % level, paired at best; 33 points around 50 % "
        "where only accuracies are known)"
    )
    assert size_in_words("mine", 4) == (
        "mine: 4 problems, so one problem is 25.0 points; too few to show any difference at the 5 % level"
    )
