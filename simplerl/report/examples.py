"""Responses before and after training, to equal problems, chosen by rule and split into segments to highlight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from simplerl.report.plain_text import visible
from simplerl.report.response_files import eval_responses
from simplerl.report.run_data import GREEDY, EvalKey, Row, RunData
from simplerl.stats.styles import CODE, CODE_BLOCK, REFLECTION, has_code

LONGEST_SHOWN = 4000
COLUMNS = (
    "problem_id", "sample_index", "question", "answer", "text", "response_tokens", "finish_reason", "extracted",
    "verdict",
)  # fmt: skip

MARKS = {
    "code": f"{CODE_BLOCK.pattern}|{CODE.pattern}",
    "reflection": REFLECTION.pattern,
    "box": r"\\boxed\s*\{[^{}]*\}?",
}
"""Patterns to highlight in a response, in upper or lower case."""

_PIECES = re.compile("|".join(f"(?P<{kind}>{rule})" for kind, rule in MARKS.items()), re.IGNORECASE | re.DOTALL)


class Pair(NamedTuple):
    """Responses to one problem at the first and at the last evaluation."""

    before: Row
    after: Row


class Example(NamedTuple):
    """A pair and the reason to show it."""

    reason: str
    pair: Pair


class Piece(NamedTuple):
    """A segment of a response: `kind` is code, reflection, box, or empty."""

    kind: str
    text: str


class Evolution(NamedTuple):
    """First and last evaluation with stored responses, paired by problem."""

    run: RunData
    first_step: int
    last_step: int
    temperature: float
    pairs: list[Pair]


def evolution(run: RunData) -> Evolution | None:
    """Pairs of the main set, greedy if that was evaluated. None: no two evaluations have responses."""
    temperature = GREEDY if run.has_greedy else run.main_temperature
    steps = [int(row["step"]) for row in run.eval_rows(temperature)]
    if run.main_set is None or temperature is None or len(steps) < 2:
        return None
    key = EvalKey(run.main_set, temperature)
    before, after = (_by_problem(eval_responses(run, step, key, COLUMNS)) for step in (steps[0], steps[-1]))
    pairs = [Pair(before[key], after[key]) for key in before if key in after]
    return Evolution(run, steps[0], steps[-1], temperature, pairs) if pairs else None


def _by_problem(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    return {(row["problem_id"], row["sample_index"]): row for row in rows}


def transitions(pairs: Sequence[Pair]) -> dict[tuple[bool, bool], int]:
    """Number of problems (solved before, solved after)."""
    return dict(Counter((_solved(pair.before), _solved(pair.after)) for pair in pairs))


def choose(pairs: Sequence[Pair]) -> list[Example]:
    """The first pair of each kind, so that failures are shown as well as gains."""
    kinds = {
        "Program code before, solved after": lambda p: has_code(p.before["text"]) and _gained(p),
        "In words and not solved before, solved after": lambda p: not has_code(p.before["text"]) and _gained(p),
        "Solved before, not after": lambda p: _solved(p.before) and not _solved(p.after),
        "Solved neither before nor after": lambda p: not _solved(p.before) and not _solved(p.after),
    }
    found = ((reason, next((pair for pair in pairs if fits(pair)), None)) for reason, fits in kinds.items())
    return [Example(reason, pair) for reason, pair in found if pair]


def _solved(row: Row) -> bool:
    return row["verdict"] == "correct"


def _gained(pair: Pair) -> bool:
    return _solved(pair.after) and not _solved(pair.before)


def pieces(text: str) -> list[Piece]:
    """The response as segments that add up to it, without the middle of a very long one."""
    shown, found, end = visible(text, LONGEST_SHOWN), [], 0
    for match in _PIECES.finditer(shown):
        found += [Piece("", shown[end : match.start()]), Piece(match.lastgroup or "", match.group())]
        end = match.end()
    return [piece for piece in (*found, Piece("", shown[end:])) if piece.text]
