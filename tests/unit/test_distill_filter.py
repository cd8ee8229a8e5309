"""Every rule that keeps a response or leaves it out, with values worked by hand."""

from __future__ import annotations

import pytest

from simplerl.config import FilterConfig
from simplerl.distill.filter import OUTCOMES, Response, decide, duplicates, fault, surplus
from simplerl.distill.letters import other_letters
from simplerl.distill.teachers.base import Answer, AnswerEnd, Asked
from simplerl.types import Problem, Verdict, VerdictLabel

pytestmark = pytest.mark.unit

LOOP = "So we add one. " * 20


def response(
    text: str = "It is \\boxed{7}.",
    label: VerdictLabel | None = "correct",
    *,
    problem: str = "p",
    question: str = "What is 3+4?",
    sample: int = 0,
    tokens: int | None = 10,
    end: AnswerEnd = "stop",
) -> Response:
    asked = Asked(f"{problem}#{sample}", Problem(problem, question, "7"), sample, 1)
    return Response(asked, Answer(asked.id, text, tokens, end), label and Verdict(label))


# --- one response -----------------------------------------------------------------------------------------------------


def test_a_right_and_finished_response_is_kept() -> None:
    assert fault(response(), FilterConfig()) is None


@pytest.mark.parametrize("label", ["error", "no_answer", "wrong"])
def test_what_is_not_right_is_left_out_under_its_verdict(label: VerdictLabel) -> None:
    assert fault(response(label=label), FilterConfig()) == label


def test_a_refusal_has_no_verdict() -> None:
    assert fault(response("", None, end="refused"), FilterConfig()) == "refused"


def test_a_right_answer_that_was_cut_would_teach_not_to_end() -> None:
    assert fault(response(end="length"), FilterConfig()) == "truncated"


@pytest.mark.parametrize("tokens, expected", [(4, "short"), (5, None), (8, None), (9, "long")])
def test_the_window_holds_both_its_ends(tokens: int, expected: str | None) -> None:
    assert fault(response(tokens=tokens), FilterConfig(min_tokens=5, max_tokens=8)) == expected


@pytest.mark.parametrize("characters, tokens", [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_four_characters_count_as_a_token_where_the_teacher_does_not_count(characters: int, tokens: int) -> None:
    assert response("x" * characters, tokens=None).tokens == tokens


def test_code_loops_and_other_letters_stay_only_where_they_may() -> None:
    code, loop, chinese = (response(text) for text in ("print(7) \\boxed{7}", "\\boxed{7} " + LOOP, "答 \\boxed{7}"))
    strict, lax = FilterConfig(), FilterConfig(code=True, loops=True, other_letters=1.0)
    assert [fault(each, strict) for each in (code, loop, chinese)] == ["code", "loop", "other_letters"]
    assert [fault(each, lax) for each in (code, loop, chinese)] == [None, None, None]


def test_a_share_of_other_letters_may_be_allowed() -> None:
    # 1 of the 10 letters: 答, abc, boxed, x.
    one_in_ten = response("答 abc \\boxed{x}")
    assert fault(one_in_ten, FilterConfig(other_letters=0.1)) is None
    assert fault(one_in_ten, FilterConfig(other_letters=0.09)) == "other_letters"


def test_the_first_rule_that_is_broken_names_the_fate() -> None:
    """Verdict, end, length, code, loop, letters, in this order; each step mends the first."""
    text, keep = "答 print(7) " + LOOP, FilterConfig(max_tokens=8)
    assert fault(response(text, "wrong", end="length"), keep) == "wrong"
    assert fault(response(text, end="length"), keep) == "truncated"
    assert fault(response(text), keep) == "long"
    assert fault(response(text, tokens=8), keep) == "code"
    assert fault(response("答 " + LOOP, tokens=8), keep) == "loop"
    assert fault(response("答", tokens=8), keep) == "other_letters"


# --- letters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, share",
    [
        ("", 0.0),
        ("12 + 34 = 46 ✓ 🙂", 0.0),
        ("Let x be in ℝ, ℵ the cardinal, 𝑓(𝑥) = ∑ ∂ θ ϑ α", 0.0),  # noqa: RUF001 - mathematical symbols, and Greek
        ("Thé naïve œuvre ﬁx ＡＢ µ 5º ʰ", 0.0),  # noqa: RUF001 - Latin: accents, ligatures, full width, ordinals
        ("ab中д", 0.5),
        ("ab中中中中中中", 0.75),
        ("ответ", 1.0),
        ("ㄱㅏ カタ ひら ع ไ", 1.0),
        ("日ー", 1.0),  # the mark that lengthens a vowel is no letter
    ],
)
def test_letters_neither_latin_nor_greek(text: str, share: float) -> None:
    assert other_letters(text) == share


# --- several responses ------------------------------------------------------------------------------------------------


def test_a_response_that_differs_in_white_space_alone_is_a_duplicate_of_the_first() -> None:
    found = duplicates(
        [
            response("a  b\n\nc", sample=0),
            response(" a b c ", sample=1),
            response("a b C", sample=2),
            response("a b c", problem="again", question="What is  3+4?"),
            response("a b c", problem="other", question="What is 4+4?"),
        ]
    )
    assert found == ["p#1", "again#0"]


@pytest.mark.parametrize(
    "choose, per_problem, kept",
    [
        ("first", 1, {0}),
        ("first", 2, {0, 1}),
        ("shortest", 1, {1}),
        ("shortest", 2, {1, 3}),  # 1 and 3 are equally short
        ("longest", 1, {2}),
        ("longest", 3, {2, 0, 1}),
        ("first", 9, {0, 1, 2, 3}),
    ],
)
def test_of_several_as_many_are_kept_as_wanted(choose: str, per_problem: int, kept: set[int]) -> None:
    responses = [response(sample=n, tokens=tokens) for n, tokens in enumerate((7, 5, 9, 5))]
    left_out = surplus(responses, FilterConfig(choose=choose, per_problem=per_problem))
    assert set(left_out) == {f"p#{n}" for n in {0, 1, 2, 3} - kept}


def test_every_response_has_one_fate() -> None:
    """A duplicate or a wrong response takes nobody's place."""
    responses = [
        response("first", "wrong", sample=0),
        response("right", sample=1),
        response("right ", sample=2),
        response("other", sample=3),
        response("another", sample=4),
        response("", None, sample=5, end="refused"),
        response("right", problem="q", question="What is 7*1?"),
    ]
    outcomes = decide(responses, FilterConfig(per_problem=2))
    assert outcomes == ["wrong", "kept", "duplicate", "kept", "surplus", "refused", "kept"]
    assert set(outcomes) <= set(OUTCOMES)


def test_a_duplicate_of_what_was_left_out_is_none() -> None:
    responses = [response("same", sample=0, end="length"), response("same", sample=1)]
    assert decide(responses, FilterConfig()) == ["truncated", "kept"]
