"""Rows of a file judged in their order, with bounded memory, and what is counted meanwhile."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from simplerl.errors import DataError
from simplerl.formatting import replace_surrogates
from simplerl.rewards.simplerl import Config as Reward
from simplerl.rollouts.grade import results_in_order
from simplerl.storage.jsonl import read_jsonl
from simplerl.types import Problem, Rollout, Verdict, VerdictLabel
from simplerl.verifiers.base import Verifier
from simplerl.verifiers.math import MathVerifier

WINDOW = 1024
"""Rows that wait for their verdict at a time."""

LABELS: tuple[VerdictLabel, ...] = get_args(VerdictLabel)
TEXT_KEYS, GOLD_KEYS, QUESTION_KEYS = ("response", "pred"), ("answer", "gold"), ("question", "problem")
NAMED = 10


@dataclass(frozen=True, slots=True)
class Row:
    """What is to be judged. `expected` is a recorded label: whether it is correct, or which verdict it gets."""

    id: str | int
    text: str
    gold: str
    question: str = ""
    bare: bool = False
    """Whether `text` is an answer rather than a response that one is extracted from. Mathematics only."""

    from_solution: bool = False
    """Whether `gold` is a solution that the answer is extracted from. Mathematics only."""

    expected: bool | VerdictLabel | None = None


# --- reading ----------------------------------------------------------------------------------------------------------


def read_rows(path: Path, response_key: str | None = None, answer_key: str | None = None) -> Iterator[Row]:
    """Read row by row. Raises `DataError` with the line's number if a line is not a JSON object or lacks a key."""
    texts = (response_key,) if response_key else TEXT_KEYS
    golds = (answer_key,) if answer_key else GOLD_KEYS
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        yield Row(
            id=_identity(row.get("id"), number),
            text=_text(row, texts, "--response-key", where),
            gold=_text(row, golds, "--answer-key", where),
            question=next((replace_surrogates(row[key]) for key in QUESTION_KEYS if isinstance(row.get(key), str)), ""),
            bare=_choice(row, "kind", ("response", "answer"), where),
            from_solution=_choice(row, "gold_kind", ("answer", "solution"), where),
            expected=_expected(row),
        )


def _identity(value: Any, number: int) -> str | int:
    return replace_surrogates(value) if isinstance(value, str) else value if isinstance(value, int) else number


def _text(row: Mapping[str, Any], keys: Sequence[str], option: str, where: str) -> str:
    found = [key for key in keys if key in row]
    if not found:
        has = f"has no {' or '.join(map(repr, keys))}; it has {', '.join(row) or 'no keys'}"
        raise DataError(f"{where} {has}. Say which key to read with {option}")
    value = row[found[0]]
    if not isinstance(value, str):
        shown = f"{value!r:.80}"
        raise DataError(f"{where}: {found[0]!r} is {shown}, not a string; put it in quotes, or name another key")
    return replace_surrogates(value)


def _choice(row: Mapping[str, Any], key: str, values: tuple[str, str], where: str) -> bool:
    """Whether a row has the second of two values; the first is the default."""
    value = row.get(key)
    if value is not None and value not in values:
        raise DataError(f"{where}: {key!r} is {value!r:.80}; it may be {values[0]!r} (the default) or {values[1]!r}")
    return value == values[1]


def _expected(row: Mapping[str, Any]) -> bool | VerdictLabel | None:
    values = (row.get(key) for key in ("correct", "expected"))
    return next((value for value in values if isinstance(value, bool) or value in LABELS), None)


# --- judging ----------------------------------------------------------------------------------------------------------


def judged(rows: Iterator[Row], verifier: Verifier) -> Iterator[tuple[Row, Verdict]]:
    """Every row with its verdict, in order; later rows are judged while an earlier one is waited for."""
    return results_in_order(((row, _submit(verifier, row)) for row in rows), max_pending=WINDOW)


def _submit(verifier: Verifier, row: Row) -> Future[Verdict]:
    if isinstance(verifier, MathVerifier):
        gold = verifier.extract_gold(row.gold) if row.from_solution else row.gold
        return (verifier.submit_answer if row.bare else verifier.submit_response)(row.text, gold)
    if row.bare or row.from_solution:
        key = '"kind": "answer"' if row.bare else '"gold_kind": "solution"'
        raise DataError(f"row {row.id}: {key} is for the verifier math; other verifiers read responses")
    problem = Problem(str(row.id), row.question, row.gold)
    return verifier.submit(problem, Rollout.recorded(problem, row.text))


def record(row: Row, verdict: Verdict) -> dict[str, Any]:
    """What is written of one row; the reward is that of the published rule."""
    return {
        "id": row.id,
        "extracted": verdict.extracted,
        "verdict": verdict.label,
        "reward": float(getattr(Reward(), verdict.label)),
        "method": verdict.method,
        "ms": round(verdict.seconds * 1000, 3),
    }


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Summary:
    """What is counted while rows are judged."""

    verdicts: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    milliseconds: array[float] = field(default_factory=lambda: array("d"))
    errors: list[str | int] = field(default_factory=list)
    labelled: int = 0
    agreed: int = 0
    differing: list[str | int] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def add(self, row: Row, verdict: Verdict) -> None:
        self.verdicts[verdict.label] += 1
        self.methods[verdict.method] += 1
        self.milliseconds.append(verdict.seconds * 1000)
        if verdict.label == "error":
            self.errors.append(row.id)
        if row.expected is not None:
            same = row.expected == (verdict.label == "correct" if isinstance(row.expected, bool) else verdict.label)
            self.labelled += 1
            self.agreed += same
            if not same:
                self.differing.append(row.id)

    @property
    def rows(self) -> int:
        return len(self.milliseconds)

    def table(self) -> dict[str, Any]:
        """As plain values. `seconds` is the wall clock's, `ms` are those of a verdict, waiting included."""
        seconds = time.perf_counter() - self.started
        return {
            "rows": self.rows,
            "verdicts": {label: self.verdicts[label] for label in LABELS},
            "shares": {label: self.verdicts[label] / self.rows for label in LABELS},
            "methods": dict(self.methods.most_common()),
            "ms_mean": sum(self.milliseconds) / self.rows,
            "ms_p99": sorted(self.milliseconds)[math.ceil(0.99 * self.rows) - 1],
            "seconds": seconds,
            "verdicts_per_second": self.rows / seconds,
            "errors": self.errors[:NAMED],
            "agreement": self._agreement() if self.labelled else None,
        }

    def _agreement(self) -> dict[str, Any]:
        share = self.agreed / self.labelled
        return {"labelled": self.labelled, "agree": self.agreed, "share": share, "differ": self.differing[:NAMED]}
