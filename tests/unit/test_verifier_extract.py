"""What counts as the final answer of a response, in training and in evaluation."""

from __future__ import annotations

import pytest

from simplerl.verifiers.math.extract import extract

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "answer", "method"),
    [
        (r"so \boxed{4}.", "4", "box"),
        (r"\boxed{5}. Wait, \boxed{4}", "4", "box"),
        (r"\boxed{\frac{\sqrt{1+\sqrt{2}}}{3}}", r"\frac{\sqrt{1+\sqrt{2}}}{3}", "box"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}", "box"),
        (r"\fbox{7}", "7", "box"),
        (r"$\boxed 4$", "4", "box"),
        (r"\boxed{x = \boxed{4}}", "4", "box"),
        ("\\boxed{\n 4 \n}", "4", "box"),
        (r"\boxed{4}<|im_end|>\boxed{5}", "4", "box"),
        (r"\boxed{4}</s>\boxed{5}", "4", "box"),
        (r"put your final answer within \boxed{}. It is \boxed{4}.", "4", "box"),
        (r"\boxed{4}. Please put your final answer within \boxed{}.", "4", "box"),
        (r"so we get \boxed{", None, "unclosed box"),
        (r"\boxed{4} and \boxed{\frac{1}{2", None, "unclosed box"),
        (r"\boxed{}", None, "empty box"),
        (r"\boxed{ }", None, "empty box"),
        (r"put your final answer within \boxed{}.", None, "empty box"),
        ("The answer is 4.", None, "no box"),
        ("I put it in a boxed form: $4$", None, "no box"),
        ("", None, "no box"),
        (r"\boxedtext 4", None, "no box"),
    ],
)
def test_training_wants_the_last_box(text: str, answer: str | None, method: str) -> None:
    found = extract(text, "reward")
    assert (found.answer, found.method) == (answer, method)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1},\boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"$\boxed{k = 45} \quad \text{and} \quad \boxed{n = 2}$", "k = 45, n = 2"),
        (r"First \boxed{7}, but actually \boxed{42}.", "42"),
        (r"\boxed{10} \boxed{10} \boxed{10}", "10"),
        (r"<answer>\(x = 42\)</answer>", r"\(x = 42\)"),
        ("The answer is 4", "4"),
        ("The answer is $\\frac{5}{6}$ of it.", r"\frac{5}{6}"),
        ("Final Answer: **73**", "73"),
        ("and so\n#### 1,234", "1,234"),
        ("A: 26", "26"),
        ("# Answer\n\n11\\sqrt{2}", r"11\sqrt{2}"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("so it is $28$ percent", "28\\%"),
        ("It costs $1,000.99", "1,000.99"),
        ("Therefore $x \\gt 5$ is the solution.", r"x \gt 5"),
        ("we had 7 and then 12 left.", "12"),
        (r"half of \boxed{1", None),
        ("no value at all", None),
    ],
)
def test_evaluation_falls_back(text: str, answer: str | None) -> None:
    assert extract(text, "evaluation").answer == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It's not A because it doesn't make sense, therefore I think it's B", "B"),
        ("The answer is for sure D, it can't be A or B", "D"),
        ("D. it can't be A or B", "D"),
        ("So the answer is (C).", "C"),
        (r"so \boxed{E}", "E"),
    ],
)
def test_a_choice_is_found_where_one_is_asked_for(text: str, letter: str) -> None:
    assert extract(text, "evaluation", choice=True).answer == letter


def test_a_response_that_repeats_an_empty_box_costs_no_more_than_its_length() -> None:
    """Hundreds of thousands of characters, and each search looks at the text once."""
    assert extract(r"\boxed{}. " * 40_000, "evaluation").answer is None
    assert extract(r"\boxed{3} " * 40_000, "evaluation").answer == "3"
    assert extract("{" * 400_000, "reward").answer is None
