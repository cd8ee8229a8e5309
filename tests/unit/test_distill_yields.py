"""The outcomes of all responses add up to what was asked, per level and in total."""

from __future__ import annotations

from typing import Any

import pytest

from simplerl.distill.filter import OUTCOMES, FilterOutcome, Response
from simplerl.distill.problems import Chosen
from simplerl.distill.teachers.base import Answer, Asked
from simplerl.distill.yields import as_markdown, grid, yields_of
from simplerl.types import Problem, Verdict

pytestmark = pytest.mark.unit

CORRECT = ("kept", "truncated", "short", "long", "code", "loop", "other_letters", "duplicate", "surplus")


def response(problem: str, level: int | None, sample: int, outcome: FilterOutcome, tokens: int = 10) -> Response:
    asked = Asked(f"{problem}#{sample}", Problem(problem, "Q", "7", level), sample, 1)
    if outcome == "refused":
        return Response(asked, Answer(asked.id, "", None, "refused", "too long"), None)
    label = outcome if outcome in ("error", "no_answer", "wrong") else "correct"
    return Response(asked, Answer(asked.id, "text", tokens, "stop"), Verdict(label))


def yields(rows: list[tuple[str, int | None, int, FilterOutcome, int]], chosen: Chosen | None = None) -> dict[str, Any]:
    return yields_of([response(*row) for row in rows], [row[3] for row in rows], chosen or Chosen([]))


ROWS: list[tuple[str, int | None, int, FilterOutcome, int]] = [
    ("a", 3, 0, "kept", 10),
    ("a", 3, 1, "surplus", 99),
    ("b", 3, 0, "wrong", 99),
    ("b", 3, 1, "refused", 99),
    ("c", 5, 0, "kept", 30),
    ("c", 5, 1, "error", 99),
]


def test_counts_per_level_and_in_total() -> None:
    found = yields(ROWS)
    three, total = found["levels"]["3"], found["total"]
    assert list(found["levels"]) == ["3", "5"]
    assert {name: three[name] for name in ("problems", "asked", "answered", "refused", "correct", "kept")} == {
        "problems": 2, "asked": 4, "answered": 3, "refused": 1, "correct": 2, "kept": 1,
    }  # fmt: skip
    assert (three["problems_kept"], three["mean_tokens"]) == (0.5, 10.0)
    assert (total["asked"], total["answered"], total["correct"], total["kept"]) == (6, 5, 3, 2)
    assert (total["problems_kept"], total["mean_tokens"]) == (2 / 3, 20.0)
    assert {outcome: n for outcome, n in total["left_out"].items() if n} == {"surplus": 1, "wrong": 1, "error": 1}


def test_fates_add_up_to_what_was_asked() -> None:
    rows: list[tuple[str, int | None, int, FilterOutcome, int]] = [
        ("p", 1 + n % 2, n, outcome, 10) for n, outcome in enumerate((*OUTCOMES, *OUTCOMES, "wrong"))
    ]
    found = yields(rows)
    for entry in (*found["levels"].values(), found["total"]):
        assert entry["kept"] + entry["refused"] + sum(entry["left_out"].values()) == entry["asked"]
    assert found["total"]["correct"] == 2 * len(CORRECT)
    assert sum(entry["asked"] for entry in found["levels"].values()) == found["total"]["asked"] == 27


def test_problems_without_a_level_have_a_column_of_their_own_beside_others_only() -> None:
    assert grid(yields([("a", None, 0, "kept", 4)]))[0] == ("", "all")
    mixed = yields([("a", None, 0, "kept", 4), ("b", 2, 0, "wrong", 4)])
    assert grid(mixed)[0] == ("", "level 2", "no level", "all")


def test_the_table_shows_the_reasons_that_occurred() -> None:
    overlap = {"math500": {"exact": 2, "format-insensitive": 1, "13-gram": 0}}
    text = as_markdown(yields(ROWS, Chosen([], overlap=overlap | {"any": overlap["math500"]})))
    assert text == (
        "|  | level 3 | level 5 | all |\n"
        "| --- | --- | --- | --- |\n"
        "| problems | 2 | 1 | 3 |\n"
        "| asked | 4 | 2 | 6 |\n"
        "| answered | 3 | 2 | 5 |\n"
        "| refused | 1 | 0 | 1 |\n"
        "| correct | 2 | 1 | 3 |\n"
        "| left out: error | 0 | 1 | 1 |\n"
        "| left out: wrong | 1 | 0 | 1 |\n"
        "| left out: surplus | 1 | 0 | 1 |\n"
        "| kept | 1 | 1 | 2 |\n"
        "| problems with a kept one | 50.0% | 100.0% | 66.7% |\n"
        "| tokens of a kept one, mean | 10 | 30 | 20 |\n"
        "\n3 more problems occur in a benchmark and were not asked.\n"
    )


def test_nothing_kept_is_no_mean() -> None:
    entry = yields([("a", 3, 0, "wrong", 9)])["total"]
    assert (entry["problems_kept"], entry["mean_tokens"]) == (0.0, None)
    assert grid({"levels": {}, "total": entry})[-1] == ("tokens of a kept one, mean", "-")
