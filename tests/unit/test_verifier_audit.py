"""What a looser comparison would call right: each rule on pairs judged by hand, and pairs that none should name."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplerl.verifiers.math.audit import KINDS, Finding, Judged, audit, edited, loosely_equal, numbers
from simplerl.verifiers.math.pool import Outcome

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "answer, gold, kind, rule",
    [
        ("[1, 2]", "(1,2)", "edit", "decoration dropped"),
        (r"\$5", "5", "edit", "decoration dropped"),
        (r"10\text{ cm}", "10", "edit", "decoration dropped"),
        ("10 apples", "10", "edit", "decoration dropped"),
        ("10 sq. units", "10", "edit", "decoration dropped"),
        (r"\text{Tuesday}", "Tuesday", "edit", "decoration dropped"),
        (r"45^{\circ}", "45", "edit", "decoration dropped"),
        ("x = 5", "5", "edit", "decoration dropped"),
        ("f(x)=x^2+1", "x^2+1", "edit", "decoration dropped"),
        (r"x \in [0,1]", "[0,1]", "edit", "decoration dropped"),
        (r"\theta=30", "30", "edit", "decoration dropped"),
        ("2.500", "2.5", "edit", "decoration dropped"),
        ("2.0", "2", "edit", "decoration dropped"),
        (r"\left\{ 1, 2 \right\}", "1,2", "edit", "decoration dropped"),
        ("12 %", "12", "edit", "decoration dropped"),
        ("a", "A", "letter-case", "upper and lower case"),
        (r"\text{odd}", "Odd", "letter-case", "upper and lower case"),
        ("3.14", r"\pi", "numeric", "within 1 %"),
        ("1.414", r"\sqrt{2}", "numeric", "within 1 %"),
        ("99.5", "100", "numeric", "within 1 %"),
        ("3+2", "5", "numeric", "equal value"),
        ("(0.33, 2)", "(1/3, 2)", "numeric", "within 1 %"),
        ("50", "0.5", "numeric", "factor 100"),
        ("0.5", "50", "numeric", "factor 1/100"),
        ("0.3", r"\frac{1}{3}", "numeric", "rounded"),
        (r"\frac{1}{3}", "0.3", "numeric", "rounded"),
        ("13", "12.57", "numeric", "rounded"),
    ],
)
def test_a_looser_comparison_has_a_name(answer: str, gold: str, kind: str, rule: str) -> None:
    assert loosely_equal(answer, gold) == (kind, rule)


@pytest.mark.parametrize(
    "answer, gold",
    [
        # Whole numbers are no measurements: the next one is another number.
        ("1001", "1000"),
        ("204", "205"),
        ("5", "6"),
        ("-3", "3"),
        ("2", "3.1"),
        ("1", "0.9"),
        ("0.1", "0"),
        # What is dropped must be no mathematics.
        ("2x", "2"),
        ("2 pi", "2"),
        (r"2\pi", "2"),
        (r"\frac{1}{23}", r"\frac{12}{3}"),
        ("x^2", "x^3"),
        ("y=2x", "x=2y"),
        ("(1,2,3)", "(1,2)"),
        (r"\infty", "5"),
        ("", "5"),
        ("1/0", "7"),
        ("9" * 5000, "9" * 4999),
    ],
)
def test_different_answers_are_different(answer: str, gold: str) -> None:
    assert loosely_equal(answer, gold) is None


def test_numbers_are_the_values_of_an_answer() -> None:
    assert numbers("x = 1/4") == (0.25,)
    assert numbers(r"\{1, 50\%\}") == (1, 0.5)
    assert numbers("5 cm") == (5,)
    assert numbers("x+1") == numbers("2x+z = 1") == numbers(r"\frac{") == ()


def test_nothing_is_left_of_decoration_alone() -> None:
    assert edited("$ $") == edited("()") == set()
    assert loosely_equal("()", "[ ]") is None


# --- findings ---------------------------------------------------------------------------------------------------------


def test_findings_come_in_order_and_only_where_there_is_one() -> None:
    wrong = [
        Judged("a", "5", "6"),
        Judged(2, "0.33", "1/3", "response"),
        Judged(3, None, "7", r"so \boxed{7} ... \boxed{"),
        Judged("d", "b", "B"),
    ]
    assert audit(wrong) == [
        Finding(2, "numeric", "within 1 %", "0.33", "1/3"),
        Finding(3, "other box", "another box", None, "7"),
        Finding("d", "letter-case", "upper and lower case", "b", "B"),
    ]
    assert {each.kind for each in audit(wrong)} <= set(KINDS)


@pytest.mark.parametrize(
    "extracted, response, rule",
    [
        ("5", r"First \boxed{7}, no: \boxed{5}.", "another box"),
        ("5", r"\boxed{5} and \boxed{\frac{14}{2}} and \boxed{5}", "another box"),
        (None, "The answer is 7.", "no box, last value"),
        (None, "It is $7$", "no box, last value"),
    ],
)
def test_the_right_answer_may_stand_elsewhere(extracted: str | None, response: str, rule: str) -> None:
    assert audit([Judged(1, extracted, "7", response)]) == [Finding(1, "other box", rule, extracted, "7")]


@pytest.mark.parametrize(
    "extracted, response",
    [
        ("5", r"\boxed{5}"),
        ("5", r"\boxed{6} \boxed{5}. Is it 7"),
        (None, "7 is not the answer, 8 is"),
        (None, ""),
        (None, r"\boxed{"),
        # Behind an end token nothing counts.
        (None, "I give up.<|im_end|> The answer is 7"),
    ],
)
def test_or_it_stands_nowhere(extracted: str | None, response: str) -> None:
    assert audit([Judged(1, extracted, "7", response)]) == []


def test_the_box_that_counted_is_not_another_box() -> None:
    """In training a sum that is left undone is wrong, though equal."""
    assert audit([Judged(1, "x+x", "2x", r"\boxed{x+x}")]) == []


def test_the_symbolic_path_is_asked_once_about_what_is_left() -> None:
    asked: list[tuple[str, str]] = []

    def symbolic(answer: str, gold: str) -> Future[Outcome]:
        asked.append((answer, gold))
        future: Future[Outcome] = Future()
        future.set_result(Outcome("equal" if answer.startswith("sin") else "timeout", 0.0))
        return future

    left = [Judged(n, "sin^2 x + cos^2 x", "1") for n in range(3)]
    rest = [Judged(3, "x+1", "y+1"), Judged(4, "5", "6"), Judged(5, "a", "A"), Judged(6, None, "x", "no")]
    found = audit([*left, *rest], symbolic)
    assert [(each.id, each.kind, each.rule) for each in found] == [
        *((n, "math-verify", "equal") for n in range(3)),
        (5, "letter-case", "upper and lower case"),
    ]
    assert asked == [("sin^2 x + cos^2 x", "1"), ("x+1", "y+1")]


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_is_too_strange(answer: str, gold: str) -> None:
    audit([Judged(1, answer, gold, f"\\boxed{{{gold}}} {answer} \\boxed{{{answer}}}"), Judged(2, None, gold, answer)])


@example("", "a_")
@given(
    st.text(st.sampled_from("0123456789.,+-*/^_=<>()[]{}\\$% xyab"), max_size=40),
    st.text(st.sampled_from("0123456789.,+-*/^_=<>()[]{}\\$% xyab"), max_size=40),
)
def test_no_mathematics_is_too_strange(answer: str, gold: str) -> None:
    audit([Judged(1, answer, gold, f"{answer} \\boxed{{{answer}}}"), Judged(2, gold, answer, gold)])
