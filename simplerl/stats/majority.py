"""Majority votes among the answers to one problem.

Which answers are the same is for the caller to say, see `simplerl.verifiers.base.same_answer`: in mathematics 1/2, 0.5
and \\frac12 are votes for one answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Same = Callable[[str, str], bool]
"""True if two answers are the same."""


def candidates(rows: Sequence[Row], same: Same) -> list[int | None]:
    """Number of the answer each response votes for, counted from 0 in order of appearance; None: no vote.

    Equal strings are one answer, and so is a string that is `same` as the first string of an answer. Answers that the
    verifier failed on (`error`) are compared as strings only.
    """
    numbers: dict[str, int] = {}
    firsts: list[str | None] = []
    votes: list[int | None] = []
    for row in rows:
        text = row["extracted"]
        if text and text not in numbers:
            readable = row["verdict"] != "error"
            numbers[text] = _number(text, firsts, same) if readable else len(firsts)
            if numbers[text] == len(firsts):
                firsts.append(text if readable else None)
        votes.append(numbers[text] if text else None)
    return votes


def _number(text: str, firsts: Sequence[str | None], same: Same) -> int:
    """Index of the first equal answer, or a new index."""
    equal = (number for number, first in enumerate(firsts) if first is not None and same(text, first))
    return next(equal, len(firsts))


def majority_is_correct(rows: Sequence[Row], votes: Sequence[int | None]) -> bool:
    """True if the answer with the most votes is right; of several with as many, the one given first counts.

    An answer is right when more than half of the responses that give it were judged correct. No vote at all is wrong.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return False
    # Counter keeps the order of first votes, and max takes the first of equals.
    winner = max(counts, key=counts.__getitem__)
    judged = [row["verdict"] == "correct" for row, vote in zip(rows, votes, strict=True) if vote == winner]
    return 2 * sum(judged) > len(judged)
