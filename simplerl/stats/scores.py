"""From the responses to a benchmark's problems to its numbers. A verdict `error` is not correct, and counted apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import comb
from statistics import fmean
from typing import Any

from simplerl.errors import DataError
from simplerl.stats import intervals
from simplerl.stats.intervals import Estimate, mean_by_problem
from simplerl.stats.majority import Same, candidates, majority_is_correct
from simplerl.stats.power import detectable_paired, detectable_unpaired
from simplerl.stats.repetition import ends_in_loop
from simplerl.stats.styles import REFLECTION, has_code, is_unboxed

Row = Mapping[str, Any]

COLUMNS = (
    "problem_id", "sample_index", "text", "extracted", "verdict", "response_tokens", "finish_reason", "level",
    "subject",
)  # fmt: skip
"""The columns of `simplerl.storage.records.EVAL_COLUMNS` that `score` reads."""


@dataclass(frozen=True)
class Group:
    """The problems of one level or subject."""

    problems: int
    responses: int
    accuracy: Estimate


@dataclass(frozen=True)
class Scores:
    """The numbers of a benchmark. Shares are of responses, 0 to 1; lengths are tokens; None where there is nothing."""

    problems: int
    responses: int
    samples: int
    """Responses per problem; while some are missing, the fewest."""

    accuracy: Estimate
    """Mean over problems of the share of correct responses: pass@1 for one sample, avg@k for k."""

    pass_at: Mapping[int, Estimate]
    """Chance that one of k responses is correct, for k = 1, 2, 4, ... and all (arXiv:2107.03374, eq. 1)."""

    maj_at: Mapping[int, Estimate]
    """Share of problems whose first k responses have a correct majority, for the same k from 2 on."""

    shares: Mapping[str, float | None]
    """no_answer, error, clip_ratio, repetition (see `ends_in_loop`), code, box, reflection."""

    tokens: Mapping[str, float | None]
    """Mean response tokens of all, correct, wrong (all others), finished and truncated responses."""

    reflection_keywords: float
    """Self-reflection keywords per response."""

    levels: Mapping[int, Group] = field(default_factory=dict)
    subjects: Mapping[str, Group] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What the accuracy is called: pass@1, avg@32."""
        return "pass@1" if self.samples == 1 else f"avg@{self.samples}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "problems": self.problems,
            "responses": self.responses,
            "samples": self.samples,
            "metric": self.metric,
            "accuracy": self.accuracy._asdict(),
            "smallest_difference": {
                "paired_at_best": detectable_paired(self.problems),
                "unpaired": detectable_unpaired(self.problems, self.problems, self.accuracy.value),
            },
            "pass_at": {str(k): one._asdict() for k, one in self.pass_at.items()},
            "maj_at": {str(k): one._asdict() for k, one in self.maj_at.items()},
            "shares": dict(self.shares),
            "tokens": dict(self.tokens),
            "reflection_keywords": self.reflection_keywords,
            "levels": {str(level): _group_dict(group) for level, group in self.levels.items()},
            "subjects": {subject: _group_dict(group) for subject, group in self.subjects.items()},
        }


def _group_dict(group: Group) -> dict[str, Any]:
    return {"problems": group.problems, "responses": group.responses, "accuracy": group.accuracy._asdict()}


def score(rows: Iterable[Row], same: Same) -> Scores:
    """The numbers of one benchmark from its responses in any order; `same` tells which answers vote together.

    Raises `DataError` without any.
    """
    problems = by_problem(rows)
    if not problems:
        raise DataError("there are no responses to count yet")
    everything = [row for problem in problems for row in problem]
    samples = min(map(len, problems))
    texts = [row["text"] or "" for row in everything]
    keywords = [len(REFLECTION.findall(text)) for text in texts]
    return Scores(
        problems=len(problems),
        responses=len(everything),
        samples=samples,
        accuracy=accuracy(problems),
        pass_at={k: pass_at(problems, k) for k in powers(samples)},
        maj_at=_majorities(problems, [k for k in powers(samples) if k > 1], same),
        shares=_shares(everything, texts) | {"reflection": fmean(count > 0 for count in keywords)},
        tokens=_tokens(everything),
        reflection_keywords=fmean(keywords),
        levels=_groups(problems, "level"),
        subjects=_groups(problems, "subject"),
    )


def average(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of several benchmarks' accuracies as value, low, high; each benchmark has the same weight."""
    return intervals.average([one.accuracy for one in scores])._asdict()


def by_problem(rows: Iterable[Row]) -> list[list[Row]]:
    """Responses of each problem by sample, in the order of problem ids; one that is there twice counts once."""
    return [list(group) for _, group in groupby(sorted_responses(rows), key=lambda row: row["problem_id"])]


def sorted_responses(rows: Iterable[Row]) -> list[Row]:
    """Responses by problem and sample; the last of several with the same problem and sample counts."""
    unique = {(row["problem_id"], row["sample_index"]): row for row in rows}
    return [unique[key] for key in sorted(unique)]


def powers(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which is the last."""
    return sorted({1 << bit for bit in range(samples.bit_length())} | {samples})


# --- correctness ------------------------------------------------------------------------------------------------------


def accuracy(problems: Sequence[Sequence[Row]]) -> Estimate:
    """Mean over problems of the share of correct responses, with its interval clustered by problem."""
    return mean_by_problem([_correct(rows) / len(rows) for rows in problems], sum(map(len, problems)))


def pass_at(problems: Sequence[Sequence[Row]], k: int) -> Estimate:
    """Mean over problems of the unbiased pass@k, with its interval clustered by problem."""
    return mean_by_problem([pass_at_k(len(rows), _correct(rows), k) for rows in problems], sum(map(len, problems)))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of the n responses hold a correct one (arXiv:2107.03374, eq. 1)."""
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass_at_k: k={k} of {n} responses, {correct} correct; needs 1 <= k <= n, 0 <= correct <= n")
    return 1 - comb(n - correct, k) / comb(n, k)


def _majorities(problems: Sequence[Sequence[Row]], sizes: Sequence[int], same: Same) -> dict[int, Estimate]:
    if not sizes:
        return {}
    votes = [candidates(rows, same) for rows in problems]
    right = {
        k: sum(majority_is_correct(rows[:k], given[:k]) for rows, given in zip(problems, votes, strict=True))
        for k in sizes
    }
    return {k: intervals.share(count, len(problems)) for k, count in right.items()}


def _groups(problems: Sequence[Sequence[Row]], key: str) -> dict[Any, Group]:
    """Accuracy for each value of a problem's column, in order; problems without one are in none."""
    parts: dict[Any, list[Sequence[Row]]] = defaultdict(list)
    for rows in problems:
        if rows[0][key] is not None:
            parts[rows[0][key]].append(rows)
    return {value: Group(len(part), sum(map(len, part)), accuracy(part)) for value, part in sorted(parts.items())}


def _correct(rows: Sequence[Row]) -> int:
    return sum(row["verdict"] == "correct" for row in rows)


# --- responses --------------------------------------------------------------------------------------------------------


def _shares(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float | None]:
    ended = [row["finish_reason"] for row in rows if row["finish_reason"] is not None]
    return {
        "no_answer": fmean(row["verdict"] == "no_answer" for row in rows),
        "error": fmean(row["verdict"] == "error" for row in rows),
        "clip_ratio": fmean(reason == "length" for reason in ended) if ended else None,
        "repetition": fmean(map(ends_in_loop, texts)),
        "code": fmean(map(has_code, texts)),
        "box": fmean(not is_unboxed(text) for text in texts),
    }


def _tokens(rows: Sequence[Row]) -> dict[str, float | None]:
    kinds = {
        "all": rows,
        "correct": [row for row in rows if row["verdict"] == "correct"],
        "wrong": [row for row in rows if row["verdict"] != "correct"],
        "finished": [row for row in rows if row["finish_reason"] == "stop"],
        "truncated": [row for row in rows if row["finish_reason"] == "length"],
    }
    counts = {kind: [row["response_tokens"] for row in some] for kind, some in kinds.items()}
    known = {kind: [count for count in some if count is not None] for kind, some in counts.items()}
    return {kind: fmean(some) if some else None for kind, some in known.items()}
