"""Kept responses per level and in total, and reasons for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from simplerl.distill.filter import OUTCOMES, FilterOutcome, Response
from simplerl.distill.problems import Chosen
from simplerl.formatting import Grid, markdown, number

Graded = tuple[Response, FilterOutcome]
Yield = dict[str, Any]

COUNTS = ("problems", "asked", "answered", "refused", "correct")
LEFT_OUT = tuple(outcome for outcome in OUTCOMES if outcome not in ("kept", "refused"))


def yields_of(responses: Sequence[Response], outcomes: Sequence[FilterOutcome], chosen: Chosen) -> dict[str, Any]:
    """One entry per level and one for all, as plain JSON. Outcomes of each add up to the questions asked."""
    graded = list(zip(responses, outcomes, strict=True))
    return {
        "levels": {name: count(part) for name, part in by_level(graded).items()},
        "total": count(graded),
        "overlap": {"left_out": chosen.left_out, "benchmarks": chosen.overlap},
    }


def by_level(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    """Responses of each level, in order, and of none under "none"; empty if nothing has a level."""
    parts: dict[int | None, list[Graded]] = {}
    for pair in graded:
        parts.setdefault(pair[0].asked.problem.level, []).append(pair)
    levels = sorted(level for level in parts if level is not None)
    named = {str(level): parts[level] for level in levels}
    return named | {"none": parts[None]} if named and None in parts else named


def count(graded: Sequence[Graded]) -> Yield:
    """Questions, outcomes, and the share of problems with a kept response."""
    outcomes = Counter(outcome for _, outcome in graded)
    kept = [response for response, outcome in graded if outcome == "kept"]
    problems = {response.asked.problem.id for response, _ in graded}
    return {
        "problems": len(problems),
        "asked": len(graded),
        "answered": len(graded) - outcomes["refused"],
        "refused": outcomes["refused"],
        "correct": sum(r.verdict is not None and r.verdict.label == "correct" for r, _ in graded),
        "left_out": {outcome: outcomes[outcome] for outcome in LEFT_OUT},
        "kept": len(kept),
        "problems_kept": len({response.asked.problem.id for response in kept}) / len(problems) if problems else None,
        "mean_tokens": fmean(response.tokens for response in kept) if kept else None,
    }


def grid(yields: dict[str, Any]) -> Grid:
    """A column per level and one for all, with the reasons that occurred."""
    columns = {_column(name): entry for name, entry in yields["levels"].items()} | {"all": yields["total"]}
    occurred = [outcome for outcome in LEFT_OUT if yields["total"]["left_out"][outcome]]
    rows = [("", *columns)]
    rows += [(name, *(f"{entry[name]:,}" for entry in columns.values())) for name in COUNTS]
    rows += [
        (f"left out: {outcome}", *(f"{e['left_out'][outcome]:,}" for e in columns.values())) for outcome in occurred
    ]
    rows.append(("kept", *(f"{entry['kept']:,}" for entry in columns.values())))
    rows.append(("problems with a kept one", *(number(e["problems_kept"], ".1%") for e in columns.values())))
    rows.append(("tokens of a kept one, mean", *(number(e["mean_tokens"], ",.0f") for e in columns.values())))
    return [(name.replace("_", " "), *cells) for name, *cells in rows]


def _column(level: str) -> str:
    return "no level" if level == "none" else f"level {level}"


def as_markdown(yields: dict[str, Any]) -> str:
    """The table, and the problems left out before the teacher ran."""
    left_out = yields["overlap"]["left_out"]
    note = f"\n{left_out:,} more problems occur in a benchmark and were not asked.\n" if left_out else ""
    return f"{markdown(grid(yields))}\n{note}"
