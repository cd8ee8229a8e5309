import json
import operator
from itertools import combinations

import pytest
from synthetic_evals import response, rows_of

from simplerl.errors import DataError
from simplerl.stats.intervals import mean_by_problem, share, wilson
from simplerl.stats.majority import candidates, majority_is_correct
from simplerl.stats.repetition import ends_in_loop
from simplerl.stats.scores import average, by_problem, pass_at_k, powers, score

pytestmark = pytest.mark.unit


# --- pass@k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_correct_one(n):
    for correct in range(n + 1):
        for k in range(1, n + 1):
            chosen = [any(i < correct for i in choice) for choice in combinations(range(n), k)]
            assert pass_at_k(n, correct, k) == pytest.approx(sum(chosen) / len(chosen))


def test_pass_at_k_worked_by_hand():
    # 2 of 4 correct, choose 2: 1 - C(2, 2) / C(4, 2) = 5 / 6. One of 256, choose 64: 1 - 192 / 256.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(256, 1, 64) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 5), (4, 5, 1), (4, 2, 0)])
def test_impossible_choices_are_refused(n, correct, k):
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(("samples", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])])
def test_sizes_are_powers_of_two_and_all(samples, sizes):
    assert powers(samples) == sizes


# --- majority ---------------------------------------------------------------------------------------------------------


def votes(*answers, gold="0.5"):
    """A problem's responses with these answers; None gives none."""
    right = {"1/2", "0.5", r"\frac12", r"\frac{1}{2}", "50\\%"} if gold == "0.5" else {gold}
    verdicts = ["no_answer" if answer is None else "correct" if answer in right else "wrong" for answer in answers]
    return [
        response(0, i, verdict, extracted=answer)
        for i, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True))
    ]


def same(answer, first):
    """Spellings of two numbers, written out: no verifier is needed to count votes."""
    spelled = ({"1/2", "0.5", r"\frac12", r"\frac{1}{2}"}, {"2", "4/2", "2.0"})
    return any({answer, first} <= spellings for spellings in spelled)


def majority(*answers, gold="0.5"):
    rows = votes(*answers, gold=gold)
    return majority_is_correct(rows, candidates(rows, same))


def test_spellings_of_one_number_vote_together():
    answers = ("1/2", "0.5", r"\frac12", "2", "2", r"\frac{1}{2}", None)
    assert candidates(votes(*answers), same) == [0, 0, 0, 1, 1, 0, None]
    # By string each spelling has one vote and 2 would win with two.
    assert majority("2", "1/2", "2", "0.5", r"\frac12")


def test_a_wrong_majority_by_equivalence_wins():
    assert not majority("0.5", "0.5", "2", "4/2", "2.0")


def test_of_equally_many_votes_the_first_counts():
    assert majority("0.5", "2", "2", "1/2")
    assert not majority("2", "0.5", "1/2", "2")


def test_no_answer_is_no_vote():
    assert majority(None, None, None, "0.5")
    assert not majority(None, None)


def test_answers_of_verifier_errors_vote_by_their_string_alone():
    rows = votes("1/2", "0.5", "0.5")
    rows[1]["verdict"] = rows[2]["verdict"] = "error"
    assert candidates(rows, same) == [0, 1, 1]


def test_an_answer_is_right_when_most_who_give_it_are():
    rows = votes("0.5", "0.5", "0.5")
    rows[0]["verdict"] = "error"
    assert majority_is_correct(rows, [0, 0, 0])
    assert not majority_is_correct(rows[:2], [0, 0])


def test_each_new_string_is_compared_once_with_each_answer_before_it():
    compared = []

    def counted(answer, first):
        compared.append((answer, first))
        return same(answer, first)

    assert candidates(votes("2", "0.5", "2", "1/2", "3", "1/2", "0.5"), counted) == [0, 1, 0, 1, 2, 1, 1]
    assert compared == [("0.5", "2"), ("1/2", "2"), ("1/2", "0.5"), ("3", "2"), ("3", "0.5")]


def test_without_an_equality_strings_vote():
    assert candidates(votes("1/2", "0.5", "1/2"), operator.eq) == [0, 1, 0]


# --- loops ------------------------------------------------------------------------------------------------------------

BLOCK = "The quick brown fox jumps over the lazy dog and then it goes home to rest. "


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("!" * 100, True),
        ("!" * 99, False),
        ("Let us see. " + BLOCK * 3, True),
        ("Let us see. " + BLOCK * 3 + BLOCK[:20], True),  # cut within the fourth copy
        ("Let us see. " + BLOCK * 2 + BLOCK[:60], False),  # not three copies
        (BLOCK * 4 + "So \\boxed{4}.", False),  # it found its way out
        (BLOCK * 3 + BLOCK[:5] + "\n\n", True),
        ("x = 1000" + "0" * 60, False),
        ("ab " * 34, True),
        (" ".join(map(str, range(500))), False),
    ],
)
def test_loops(text, loops):
    assert ends_in_loop(text) is loops


# --- scores -----------------------------------------------------------------------------------------------------------


def test_one_sample_per_problem():
    scores = score(rows_of(["c", "w", "c", "n", "e"]), same)
    assert (scores.problems, scores.responses, scores.samples, scores.metric) == (5, 5, 1, "pass@1")
    assert scores.accuracy == scores.pass_at[1] == (0.4, *wilson(2, 5))
    assert list(scores.pass_at) == [1] and scores.maj_at == {}
    assert (scores.shares["no_answer"], scores.shares["error"], scores.shares["box"]) == (0.2, 0.2, 0.8)


def test_four_samples_per_problem():
    scores = score(rows_of(["cccc", "ccww", "wwwc", "wwww"]), same)
    assert (scores.problems, scores.responses, scores.metric) == (4, 16, "avg@4")
    assert scores.accuracy == mean_by_problem([1, 0.5, 0.25, 0], 16)
    assert scores.pass_at[1] == scores.accuracy
    assert scores.pass_at[2] == mean_by_problem([1, 5 / 6, 1 / 2, 0], 16)
    assert scores.pass_at[4] == share(3, 4)
    # The second problem's tie goes to its first answer, which is right.
    assert scores.maj_at == {2: share(2, 4), 4: share(2, 4)}


def test_order_and_repetition_of_rows_change_nothing():
    rows = rows_of(["cw", "ww", "cc"])
    assert score(reversed(rows), same) == score(rows, same) == score(rows + rows[:2], same)
    assert [[row["sample_index"] for row in problem] for problem in by_problem(reversed(rows))] == [[0, 1]] * 3


def test_while_samples_are_missing_the_fewest_count():
    scores = score(rows_of(["cccc", "cw"]), same)
    assert (scores.samples, list(scores.pass_at)) == (2, [1, 2])
    assert scores.accuracy.value == 0.75
    assert scores.pass_at[2] == mean_by_problem([1, 1], 6)


def test_levels_and_subjects_have_counts():
    rows = [response(p, 0, "c" if p < 2 else "w", level=level) for p, level in enumerate([3, 1, 3, None])]
    rows[3]["subject"] = None
    levels = score(rows, same).levels
    assert list(levels) == [1, 3]
    assert (levels[3].problems, levels[3].responses, levels[3].accuracy) == (2, 2, share(1, 2))
    assert score(rows, same).subjects["algebra"].problems == 3


def test_lengths_and_endings():
    rows = [
        response(0, 0, "c", response_tokens=10),
        response(1, 0, "w", response_tokens=20),
        response(2, 0, "n", response_tokens=60, finish_reason="length"),
        response(3, 0, "c", response_tokens=30),
    ]
    scores = score(rows, same)
    assert scores.tokens == {"all": 30, "correct": 20, "wrong": 40, "finished": 20, "truncated": 60}
    assert scores.shares["clip_ratio"] == 0.25


def test_recorded_responses_may_lack_lengths_and_endings():
    scores = score([response(0, 0, response_tokens=None, finish_reason=None, level=None, text=None)], same)
    assert set(scores.tokens.values()) == {None}
    assert scores.shares["clip_ratio"] is None


def test_styles_are_counted():
    texts = ["Wait, wait. However, \\boxed{1}", "```python\nprint(1)\n```", "Let me check: \\boxed{2}", "!" * 200]
    scores = score([response(i, 0, text=text) for i, text in enumerate(texts)], same)
    assert scores.reflection_keywords == (3 + 0 + 1 + 0) / 4
    found = {name: scores.shares[name] for name in ("reflection", "code", "box", "repetition")}
    assert found == {"reflection": 0.5, "code": 0.25, "box": 0.5, "repetition": 0.25}


def test_scores_are_plain_json():
    table = json.loads(json.dumps(score(rows_of(["cw", "ww"]), same).as_dict(), allow_nan=False))
    assert table["accuracy"]["value"] == 0.25
    assert list(table["pass_at"]) == ["1", "2"] and list(table["levels"]) == ["1", "2"]
    assert table["smallest_difference"]["paired_at_best"] is None


def test_the_average_gives_each_benchmark_the_same_weight():
    found = average([score(rows_of(["c", "c"]), same), score(rows_of(["w"] * 40), same)])
    assert found["value"] == 0.5
    assert found["low"] < 0.5 < found["high"] <= 1


def test_nothing_to_count_is_said():
    with pytest.raises(DataError, match="no responses"):
        score([], same)
