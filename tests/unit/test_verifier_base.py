"""What callers get from a verifier by its name alone."""

from __future__ import annotations

import pytest

from simplerl.errors import ConfigError
from simplerl.types import Problem, Rollout
from simplerl.verifiers.base import build_verifier, evaluation_config, same_answer

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
    problem = Problem("p", "?", "12")
    response = Rollout.recorded(problem, "So the answer is 12.")
    for settings, label in (({}, "correct"), ({"mode": "reward"}, "no_answer")):
        verifier = build_verifier(evaluation_config("math", settings))
        try:
            assert verifier.verify(problem, response).label == label
        finally:
            verifier.close()


def test_settings_of_evaluations_are_checked_before_a_model_is_loaded() -> None:
    assert evaluation_config("math").mode == "evaluation"
    assert not hasattr(evaluation_config("python-tests", {"workers": 3}), "mode")
    with pytest.raises(ConfigError, match="verifiers: no 'maths'; did you mean 'math'"):
        evaluation_config("maths")
    with pytest.raises(ConfigError, match=r"verifier\.wokers=3: unknown setting; did you mean 'workers'"):
        evaluation_config("python-tests", {"wokers": 3})


def test_a_verifier_of_a_users_own_file(tmp_path) -> None:
    file = tmp_path / "sure.py"
    file.write_text(
        "from simplerl.types import Verdict\nfrom simplerl.verifiers.base import Verifier\n"
        "class Sure(Verifier):\n    def verify(self, problem, rollout): return Verdict('correct')\n"
        "def build(config): return Sure()\n"
    )
    problem = Problem("p", "?", "12")
    verifier = build_verifier(evaluation_config("sure", {"path": str(file)}))
    assert verifier.verify(problem, Rollout.recorded(problem, "13")).label == "correct"
