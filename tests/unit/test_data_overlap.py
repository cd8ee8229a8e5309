"""The three keys of overlap, and the published counts."""

from __future__ import annotations

import os

import pytest

from simplerl.data.base import benchmark_names, load_benchmark, load_source, source_config
from simplerl.data.overlap import STOCK_PHRASE, Match, count, find_overlap, format_key
from simplerl.types import Problem

needs_data = pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="SIMPLERL_DATA, the published sets, is unset")
LONG = "a train leaves at noon and meets another one that left an hour later"  # 14 words


def overlap(train: str, test: str, **extra: str) -> list[str]:
    tests = {"bench": [Problem("bench/0", test, "1", extra=extra)]}
    return [match.kind for match in find_overlap([Problem("t/0", train, "1")], tests)]


@pytest.mark.parametrize(
    ("train", "test", "kinds"),
    [
        ("Compute  $1+1$.\n", "Compute $1+1$.", ["exact"]),
        ("Simplify $\\sqrt{245}$.", "simplify: $\\sqrt{2 4 5}$", ["format-insensitive"]),
        ("Compute $1+1$.", "Compute $1-1$.", []),
        (f"First, {LONG}.", f"{LONG.upper()}! Where?", ["13-gram"]),
        # Twelve words are not enough.
        (" ".join(LONG.split()[:12]) + " x", " ".join(LONG.split()[:12]) + " y", []),
        # Nothing but signs has no key of its own.
        ("$$", "{ }", []),
    ],
)
def test_kinds(train: str, test: str, kinds: list[str]) -> None:
    assert overlap(train, test) == kinds


def test_multiple_choice_is_also_compared_without_its_options() -> None:
    assert overlap("What is 1+1?", "What is 1+1?\nAnswer Choices: (A) 2 (B) 3", question="What is 1+1?") == ["exact"]


def test_the_format_key_keeps_signs() -> None:
    assert format_key("$ -3 < x^{2}_1 / (Y) $, a = B.") == "-3<x^2_1/(y)a=b"


def test_stock_phrases_are_ignored() -> None:
    train = [Problem(f"t/{n}", f"{n}: {LONG}", "1") for n in range(STOCK_PHRASE + 1)]
    tests = {"bench": [Problem("bench/0", f"{LONG} too", "1")]}
    assert len(find_overlap(train[:STOCK_PHRASE], tests)) == STOCK_PHRASE
    assert find_overlap(train, tests) == []


def test_counts_take_a_problem_once_by_its_strictest_kind() -> None:
    matches = [
        Match("a", "x", "x/0", "13-gram"),
        Match("a", "y", "y/0", "exact"),
        Match("b", "x", "x/1", "13-gram"),
    ]
    assert count(matches) == {
        "x": {"exact": 0, "format-insensitive": 0, "13-gram": 2},
        "y": {"exact": 1, "format-insensitive": 0, "13-gram": 0},
        "any": {"exact": 1, "format-insensitive": 0, "13-gram": 1},
    }


@needs_data
def test_published_counts_of_the_training_set() -> None:
    problems = load_source(source_config("math-lvl3to5"))
    matches = find_overlap(problems, {name: load_benchmark(name) for name in benchmark_names()})
    counts = count(matches)
    assert counts["any"]["exact"] == counts["mmlu_stem"]["exact"] == 116
    assert counts["any"]["format-insensitive"] == 10
    loose = {name: row["format-insensitive"] for name, row in counts.items() if row["format-insensitive"]}
    assert loose == {"mmlu_stem": 6, "olympiadbench": 3, "college_math": 1, "any": 10}
    assert {m.problem_id for m in matches if m.benchmark == "olympiadbench" and m.kind == "format-insensitive"} == {
        f"math_lvl3to5_8k/{row}" for row in (1473, 2847, 5922)
    }


@needs_data
def test_gsm8k_meets_no_benchmark() -> None:
    counts = count(
        find_overlap(
            load_source(source_config("gsm8k")), {n: load_benchmark(n) for n in ("gsm8k", "svamp", "asdiv", "mawps")}
        )
    )
    assert counts["any"]["exact"] == counts["any"]["format-insensitive"] == 0
