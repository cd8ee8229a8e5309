"""What callers get from a verifier by its name alone."""

from __future__ import annotations

import pytest

from simplerl.errors import ConfigError
from simplerl.verifiers.base import evaluation_verifier, same_answer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [("1/2", r"\frac12", True), ("0.5", r"50\%", True), ("2", "2.5", False), ("what", "ever", False)],
)
def test_answers_in_mathematics_are_the_same_by_value(a: str, b: str, equal: bool) -> None:
    assert same_answer("math")(a, b) is equal


def test_what_only_the_symbolic_path_could_tell_is_not_the_same() -> None:
    # The integral is 1/2, which takes sympy; no majority vote waits for that.
    assert same_answer("math")(r"\int_0^1 x\,dx", r"\frac12") is False


@pytest.mark.parametrize("name", ["http", "of-my-own"])
def test_a_verifier_without_the_function_compares_strings(name: str) -> None:
    assert same_answer(name)("1/2", "1/2") is True
    assert same_answer(name)("1/2", "0.5") is False


def test_evaluations_read_answers_without_a_box() -> None:
    verifier = evaluation_verifier("math")
    try:
        assert verifier.verify("So the answer is 12.", "12").label == "correct"
    finally:
        verifier.close()


def test_evaluations_need_a_shipped_verifier() -> None:
    with pytest.raises(ConfigError, match="verifiers: no 'maths'; did you mean 'math'"):
        evaluation_verifier("maths")
