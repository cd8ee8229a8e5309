import pytest

from simplerl import formatting as f

pytestmark = pytest.mark.unit


def test_numbers_and_what_stands_for_none() -> None:
    assert f.number(1234.5, ",.0f") == "1,234"
    assert f.number(0.0525, ".1%") == "5.2%"
    assert f.number(None, ".1%") == "-"
    assert f.number("text", ".1%") == "-"
    assert f.number(None, ",", "unknown") == "unknown"


def test_shares_in_percent() -> None:
    assert f.points(0.0523) == "5.2"
    assert f.points(0.25, 0) == "25"
    assert f.points(0.0523, signed=True) == "+5.2"
    assert f.points(-0.0523, signed=True) == "-5.2"
    assert f.percent(0.0523) == "5.2 %"
    assert f.percent(1.0, 0, f.NO_BREAK) == "100\xa0%"
    assert f.percent(None) == "-"


def test_intervals_in_percent() -> None:
    assert f.bounds(0.041, 0.082) == "[4.1, 8.2]"
    assert f.with_bounds(0.058, 0.041, 0.082) == "5.8 [4.1, 8.2]"
    assert f.with_bounds(0.012, -0.003, 0.027, signed=True) == "+1.2 [-0.3, +2.7]"


@pytest.mark.parametrize(("p", "text"), [(0.0421, "0.042"), (0.001, "0.001"), (0.00099, "1e-03"), (3.1e-7, "3e-07")])
def test_p_values(p: float, text: str) -> None:
    assert f.p_value(p) == text


def test_significant_digits() -> None:
    assert [f.significant(value) for value in (0.12345, 12.345, 99.9, 100.4, -1234.5)] == [
        "0.123", "12.3", "99.9", "100", "-1,234",
    ]  # fmt: skip
    assert [f.significant(value, 6, whole_from=1000) for value in (0.1234567, 999.5, 1234.5)] == [
        "0.123457", "999.5", "1,234",
    ]  # fmt: skip


def test_gib() -> None:
    assert f.gib(3 * 2**29) == "1.5 GiB"


@pytest.mark.parametrize(
    ("seconds", "clock", "long_clock"),
    [
        (7, "0:07", "0:00:07"),
        (123.4, "2:03", "0:02:03"),
        (3723, "1:02:03", "1:02:03"),
        (93784, "26:03:04", "1 day, 2:03:04"),
    ],
)
def test_clocks(seconds: float, clock: str, long_clock: str) -> None:
    assert (f.clock(seconds), f.long_clock(seconds)) == (clock, long_clock)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min"), (547.3, "9 min 7 s"), (7200, "2 h"), (3661, "1 h 1 min 1 s")]
)
def test_duration(seconds: float, words: str) -> None:
    assert f.duration(seconds).replace(f.NO_BREAK, " ") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(119, "119.0 s"), (120, "2.0 min"), (5400, "90.0 min"), (9000, "2.5 hours"), (172800, "2.0 days")],
)
def test_rough_duration(seconds: float, words: str) -> None:
    assert f.rough_duration(seconds) == words


def test_lone_surrogates_become_question_marks() -> None:
    # U+1D70B (pi) is one character beyond 16 bits, not a pair of surrogates, and stays.
    assert f.replace_surrogates("a\ud800b \U0001d70b") == "a?b \U0001d70b"
    assert f.to_utf8("\udc80") == b"?"


def test_names_like_an_unknown_one() -> None:
    assert f.did_you_mean("gpro", ["grpo", "ppo"]) == "; did you mean 'grpo'?"
    assert f.did_you_mean("xyz", ["grpo", "ppo"]) == "."
    assert f.did_you_mean("a1", ["a2", "a3", "b"], most=3, cutoff=0.4, show=str.upper) == "; did you mean A3, A2?"
