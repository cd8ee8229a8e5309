"""Majority votes among the answers to one problem: 1/2, 0.5 and \\frac12 are votes for the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simplerl.verifiers.math.compare import compare

Row = Mapping[str, Any]


def candidates(rows: Sequence[Row]) -> list[int | None]:
    """For each response the number of the answer it votes for, numbered in the order they come up; None votes for none.

    Equal strings are one answer; others are where `simplerl.verifiers.math.compare` finds them equal to the first
    string of an answer. What only its symbolic path could tell stays apart, and so does what the verifier failed on
    (`error`).
    """
    numbers: dict[str, int] = {}
    firsts: list[str | None] = []
    votes: list[int | None] = []
    for row in rows:
        text = row["extracted"]
        if text and text not in numbers:
            readable = row["verdict"] != "error"
            numbers[text] = _number(text, firsts) if readable else len(firsts)
            if numbers[text] == len(firsts):
                firsts.append(text if readable else None)
        votes.append(numbers[text] if text else None)
    return votes


def _number(text: str, firsts: Sequence[str | None]) -> int:
    """Of the first answer it equals, or a new number."""
    equal = (number for number, first in enumerate(firsts) if first is not None and compare(text, first).equal)
    return next(equal, len(firsts))


def majority_is_correct(rows: Sequence[Row], votes: Sequence[int | None]) -> bool:
    """Whether the answer with the most votes is right; of several with as many, the one given first counts.

    An answer is right when more than half of the responses that give it were judged correct. No vote at all is wrong.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return False
    # Counter keeps the order of first votes, and max takes the first of equals.
    winner = max(counts, key=counts.__getitem__)
    judged = [row["verdict"] == "correct" for row, vote in zip(rows, votes, strict=True) if vote == winner]
    return 2 * sum(judged) > len(judged)
