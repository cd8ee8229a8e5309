import pytest

from simplerl.errors import DataError
from simplerl.report.published import published, published_rows, suite_average
from simplerl.stats.intervals import wilson

pytestmark = pytest.mark.unit

OTHER_AMC = {"qwen2.5-math-7b-instruct", "llama-3.1-70b-instruct", "eurus-2-7b-prime"}


def test_every_row_is_there():
    rows = published_rows()
    assert len(rows) == 10 + 2 * 10
    assert sum(name.startswith("zoo-") and name.endswith("-base") for name in rows) == 10
    assert {row.suite for row in rows.values()} == {"simplerl-v0", "simplerl-v1"}


def test_the_two_tables_of_simplerl_zero():
    first, second = published("simplerl-zero"), published("simplerl-zero-2")
    assert [score.accuracy for score in first.scores.values()] == [0.333, 0.772, 0.625, 0.335, 0.376]
    assert [score.accuracy for score in second.scores.values()] == [0.367, 0.774, 0.625, 0.342, 0.375]
    assert list(first.scores) == ["aime24", "math500", "amc23", "minerva_math", "olympiadbench"]
    assert (first.printed_average, second.printed_average) == (0.488, 0.497)


@pytest.mark.parametrize("name", published_rows())
def test_printed_averages_are_those_of_the_printed_rows(name):
    row = published(name)
    if row.printed_average is None:
        assert name == "rstar-math-7b" and "minerva_math" not in row.scores
    else:
        mean = sum(row.scores[benchmark].accuracy for benchmark in row.average) / len(row.average)
        assert mean == pytest.approx(row.printed_average, abs=0.00051)


@pytest.mark.parametrize("name", published_rows())
def test_accuracies_are_counts_of_problems(name):
    """Rounded to a tenth of a percent, so a wrong size or a slip of the pen shows."""
    for benchmark, score in published(name).scores.items():
        responses = score.problems * score.samples
        nearest = round(score.accuracy * responses) / responses
        slip = (name, benchmark) == ("zoo-qwen2.5-14b", "amc23")
        assert score.accuracy == pytest.approx(nearest, abs=0.0011 if slip else 0.00051), benchmark


def test_the_other_amc_has_83_problems():
    for name, row in published_rows().items():
        assert row.scores["amc23"].problems == (83 if name in OTHER_AMC else 40)
        assert ("83 problems" in row.note) == (name in OTHER_AMC)


def test_settings_are_the_tables():
    base, trained = published("zoo-qwen2.5-7b-base"), published("zoo-qwen2.5-7b")
    assert base.scores["math500"].settings["temperature"] == 0.0
    assert trained.scores["math500"].settings["temperature"] == 1.0
    assert base.scores["aime24-avg32"].settings["temperature"] == 1.0
    assert base.scores["aime24-avg32"].samples == trained.scores["aime24-avg32"].samples == 32
    assert published("simplerl").scores["aime24"].settings["max_tokens"] == 3000


def test_intervals_are_those_of_the_problems():
    score = published("zoo-qwen2.5-7b").scores["aime24-avg32"]
    assert score.estimate == (0.156, *wilson(0.156 * 30, 30))


def test_averages_of_suites():
    assert len(suite_average("simplerl-v0")) == 5
    assert suite_average("simplerl-v1") == ("gsm8k", "math500", "minerva_math", "olympiadbench", "aime24", "amc23")
    assert suite_average("arithmetic") == suite_average(None) == ()


def test_an_unknown_row_lists_the_near_ones():
    with pytest.raises(
        DataError, match=r"no published row 'simplrl-zero'; did you mean simplerl-zero, simplerl-zero-2"
    ):
        published("simplrl-zero")
    with pytest.raises(DataError, match=r"no published row 'q'\. There are qwen2.5-math-7b-base, "):
        published("q")
