import pytest
from synthetic_evals import write_eval

from simplerl.report.caveats import caveats
from simplerl.report.comparison import AVERAGE, Measured, compare, difference, from_eval, from_published
from simplerl.report.eval_data import read_evaluation
from simplerl.report.published import published
from simplerl.stats.intervals import average, share
from simplerl.stats.intervals import difference as unpaired
from simplerl.stats.paired import bootstrap, mcnemar, paired_shares
from simplerl.stats.power import detectable_paired

pytestmark = pytest.mark.unit


@pytest.fixture
def evaluated(tmp_path):
    def make(label, benchmarks, **settings):
        return from_eval(read_evaluation(write_eval(tmp_path / label, benchmarks, **settings)), label)

    return make


def paper(name):
    return from_published(published(name), f"paper:{name}")


# 6 gained, 1 lost, 3 both, 20 neither.
BEFORE, AFTER = ["w"] * 6 + ["c"] + ["c"] * 3 + ["w"] * 20, ["c"] * 6 + ["w"] + ["c"] * 3 + ["n"] * 20


def test_single_responses_to_the_same_problems_are_paired(evaluated):
    result = compare([evaluated("a", {"toy": BEFORE}), evaluated("b", {"toy": AFTER})])
    found = result.differences[0]["toy"]
    assert found.estimate == paired_shares(6, 1, 30)
    assert (found.method, found.problems, found.p) == ("paired", 30, mcnemar(6, 1))
    assert found.detectable == detectable_paired(30, 7 / 30)
    assert [one.measured["toy"].estimate for one in result.contenders] == [share(4, 30), share(9, 30)]


def test_pairing_is_sharper_than_the_accuracies_alone(evaluated):
    a, b = evaluated("a", {"toy": BEFORE}), evaluated("b", {"toy": AFTER})
    paired = difference(b.measured["toy"], a.measured["toy"]).estimate
    alone = unpaired(share(9, 30), share(4, 30))
    assert paired.value == pytest.approx(alone.value)
    assert paired.low > alone.low and paired.high < alone.high


def test_several_responses_are_paired_by_the_bootstrap(evaluated):
    a, b = evaluated("a", {"toy": ["cw", "ww", "cc", "wc"]}), evaluated("b", {"toy": ["cc", "cw", "cc", "ww"]})
    found = compare([a, b]).differences[0]["toy"]
    assert found.estimate == bootstrap([0.5, 0.5, 0.0, -0.5])
    assert (found.method, found.problems, found.p) == ("paired, bootstrap", 4, None)


def test_one_response_against_several(evaluated):
    a, b = evaluated("a", {"toy": ["c", "w"]}), evaluated("b", {"toy": ["cccw", "wwwc"]})
    assert compare([a, b]).differences[0]["toy"].estimate == bootstrap([-0.25, 0.25])


def test_without_any_spread_the_bootstrap_does_not_pretend_to_know(evaluated):
    a, b = evaluated("a", {"toy": ["ww"] * 30}), evaluated("b", {"toy": ["ww"] * 30})
    found = compare([a, b]).differences[0]["toy"]
    assert found.estimate == unpaired(share(0, 30), share(0, 30))
    assert found.estimate.high > 0.1 and found.method == "no spread, as if unpaired"


def test_rounding_is_no_spread(evaluated):
    # 3/10 - 2/10 and 1/10 - 0 differ by 3e-17.
    a, b = (
        evaluated("a", {"toy": ["c" * 2 + "w" * 8, "w" * 10]}),
        evaluated("b", {"toy": ["ccc" + "w" * 7, "c" + "w" * 9]}),
    )
    assert compare([a, b]).differences[0]["toy"].method == "no spread, as if unpaired"


def test_published_rows_are_not_paired(evaluated):
    a = evaluated("a", {"aime24": ["c"] * 3 + ["w"] * 27})
    found = compare([a, paper("simplerl-zero")]).differences[0]["aime24"]
    assert found.estimate == unpaired(share(0.333 * 30, 30), share(3, 30))
    assert (found.method, found.problems, found.p) == ("unpaired", None, None)


def test_only_common_problems_are_paired(evaluated):
    result = compare([evaluated("a", {"toy": BEFORE}), evaluated("b", {"toy": AFTER[:8]})])
    assert result.differences[0]["toy"].estimate == paired_shares(6, 1, 8)
    assert "toy: 30 problems (a), 8 (b); the difference is over the 8 that both answered" in caveats(result)


def test_the_same_number_in_another_set_is_another_problem():
    def measured(question):
        return Measured(share(1, 1), 1, 1, outcomes={("toy/0", question): (1, 1)})

    assert difference(measured("What is 1?"), measured("What is 2?")).method == "unpaired"


# --- averages ---------------------------------------------------------------------------------------------------------


def test_the_average_is_the_suites(evaluated):
    row = paper("simplerl-zero")
    sets = {name: ["c", "w"] for name in (*row.average, "gsm8k")}
    result = compare([evaluated("a", sets, suite="simplerl-v0"), row])
    assert result.average == row.average
    assert result.averages[0].value == 0.5
    assert result.averages[1] == average([row.measured[name].estimate for name in row.average])
    gaps = [result.differences[0][name].estimate for name in row.average]
    assert result.differences[0][AVERAGE].estimate == average(gaps)


def test_what_lacks_a_part_has_no_average(evaluated):
    result = compare([paper("simplerl-zero"), paper("rstar-math-7b")])
    assert result.averages[1] is None and AVERAGE not in result.differences[0]
    assert "paper:rstar-math-7b: not all of them, so no average" in caveats(result)


def test_without_a_suite_the_average_is_over_what_all_share(evaluated):
    a = evaluated("a", {"one": ["c"], "two": ["w"], "three": ["w"]})
    b = evaluated("b", {"two": ["w"], "one": ["w"]})
    result = compare([a, b])
    assert result.average == ("one", "two")
    assert compare([a, evaluated("c", {"one": ["c"]})]).average == ()


def test_the_same_problems_do_not_count_twice_in_an_average(evaluated):
    a = evaluated("a", {"toy": ["c", "w"]})
    twice = {**a.measured, "toy T=1": a.measured["toy"]}
    result = compare([type(a)("a", twice), type(a)("b", twice)])
    assert result.benchmarks == ("toy", "toy T=1") and result.average == ()


def test_32_samples_of_aime_are_what_the_paper_calls_avg32(evaluated):
    a = evaluated("a", {"aime24": ["c" * 8 + "w" * 24] * 30})
    result = compare([a, paper("zoo-qwen2.5-7b")])
    assert result.contenders[0].measured["aime24-avg32"] is result.contenders[0].measured["aime24"]
    assert result.differences[0]["aime24-avg32"].method == "unpaired"


# --- caveats ----------------------------------------------------------------------------------------------------------


def test_settings_that_differ_are_said_once(evaluated):
    a = evaluated("a", {"one": ["c"] * 60, "two": ["c"] * 60})
    b = evaluated("b", {"one": ["c"] * 60, "two": ["c"] * 60}, template="abel", temperature=1.0, top_p=0.9)
    assert caveats(compare([a, b])) == [
        "template differs: qwen-boxed (a), abel (b)",
        "temperature differs: 0.0 (a), 1.0 (b)",
        "average: one, two, each with the same weight",
    ]


def test_top_p_differs_only_where_something_is_sampled(evaluated):
    a, b = (evaluated(name, {"one": ["c"] * 60}, temperature=1.0, top_p=p) for name, p in (("a", 0.9), ("b", 1.0)))
    assert caveats(compare([a, b])) == ["top-p differs: 0.9 (a), 1.0 (b)"]


def test_samples_that_differ_are_said_with_the_benchmark(evaluated):
    a = evaluated("a", {"one": ["c"] * 60, "two": ["c"] * 60})
    b = evaluated("b", {"one": ["cc"] * 60, "two": ["c"] * 60})
    assert "samples differs on one: 1 (a), 2 (b)" in caveats(compare([a, b]))


def test_the_other_amc_is_said(evaluated):
    lines = caveats(compare([paper("simplerl-zero"), paper("eurus-2-7b-prime")]))
    assert "amc23: 40 problems (paper:simplerl-zero), 83 (paper:eurus-2-7b-prime): these are different sets" in lines
    assert any("no multiple of 1/40" in line for line in lines)
    assert any("differences are unpaired" in line for line in lines)
    assert any(line.startswith("aime24: 30 problems, so one problem is 3.3 points") for line in lines)


def test_what_is_unfinished_or_could_not_be_judged_is_said(evaluated):
    a, b = evaluated("a", {"toy": ["c"] * 60}), evaluated("b", {"toy": ["e"] * 2 + ["c"] * 58}, finished=False)
    assert caveats(compare([a, b])) == [
        "b is not finished: these are its responses so far",
        "b: the verifier failed on 2 responses to toy; they count as not correct",
    ]
