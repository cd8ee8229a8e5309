"""The shipped sets: sizes, repairs, and that training never sees a benchmark."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

import simplerl
from simplerl import plugins
from simplerl.data.arithmetic import _distinct
from simplerl.data.base import benchmark_module, benchmark_names, load_benchmark, load_problems, source_config
from simplerl.data.exercises import Exercise, _modular, is_held_out
from simplerl.errors import ConfigError, DataError

needs_data = pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="SIMPLERL_DATA, the published sets, is unset")
SIZES = {
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "gsm8k": 1319,
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "gaokao2023en": 385,
    "college_math": 2818,
    "svamp": 1000,
    "asdiv": 2215,
    "mawps": 2065,
    "sat_math": 32,
    "mmlu_stem": 3018,
    "aqua": 254,
    "carp_en": 976,
}
GENERATED = ("arithmetic-test", "arithmetic-hard", "arithmetic-unseen")


def test_the_shipped_sets() -> None:
    assert set(benchmark_names()) == {*SIZES, *GENERATED}
    assert {"math-lvl3to5", "math", "gsm8k", "arithmetic", "file", "hub"} <= set(plugins.available("data"))
    assert {name: benchmark_module(name).SET.size for name in SIZES} == SIZES


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_benchmarks_have_their_size(name: str) -> None:
    problems = load_benchmark(name, fetch=False)
    assert len(problems) == SIZES[name]
    # GaoKao was published with two empty answers.
    assert sum(not p.answer for p in problems) == (2 if name == "gaokao2023en" else 0)


@needs_data
def test_math_lvl3to5_for_training() -> None:
    problems, notices = load_problems(source_config("math-lvl3to5"))
    answers = {problem.id: problem.answer for problem in problems}
    assert len(problems) == 8521
    assert (answers["math_lvl3to5_8k/3380"], answers["math_lvl3to5_8k/7997"]) == ("9", "2")
    assert not {"math_lvl3to5_8k/5054", "math_lvl3to5_8k/5158"} & set(answers)
    assert Counter(problem.level for problem in problems) == {3: 2514, 4: 2648, 5: 3359}
    repaired, dropped = notices
    assert "repaired 2" in repaired and "3380 is now 9" in repaired
    assert "dropped 2" in dropped and "5054" in dropped


@needs_data
@pytest.mark.parametrize(("name", "size", "notices"), [("math", 11_998, 1), ("gsm8k", 7473, 0)])
def test_the_other_training_sets(name: str, size: int, notices: int) -> None:
    problems, said = load_problems(source_config(name))
    assert (len(problems), len(said)) == (size, notices)


@needs_data
def test_answers_of_math_are_those_of_the_training_file() -> None:
    """Both were made apart: the 8,523 from the recipe's file, the 12,000 from the boxes of MATH's solutions."""
    published = {p.id: p.answer for p in load_problems(source_config("math"))[0]}
    recipe = [p for p in load_problems(source_config("math-lvl3to5"))[0] if p.extra["math_id"] in published]
    assert sum(p.answer == published[p.extra["math_id"]] for p in recipe) >= 0.99 * len(recipe) > 8000


def test_arithmetic_has_equal_shares_and_stable_ids() -> None:
    problems, notices = load_problems(source_config("arithmetic"))
    assert [problem.id for problem in problems] == [f"arithmetic/{n}" for n in range(8000)] and not notices
    assert Counter(problem.level for problem in problems) == {3: 2667, 4: 2667, 5: 2666}
    assert len({problem.question for problem in problems}) == 8000
    assert problems == load_problems(source_config("arithmetic"))[0]
    assert problems != load_problems(source_config("arithmetic", ["seed=1"]))[0]


def test_arithmetic_benchmarks_are_disjoint_from_training_and_each_other() -> None:
    benchmarks = {name: load_benchmark(name) for name in GENERATED}
    questions = [" ".join(p.question.split()) for problems in benchmarks.values() for p in problems]
    assert [len(problems) for problems in benchmarks.values()] == [500, 500, 500]
    assert len(set(questions)) == 1500 and all(map(is_held_out, questions))
    for seed in (0, 1):
        overrides = ["size=8000", f"seed={seed}", "levels=[1, 2, 3, 4, 5]"]
        trained = {" ".join(p.question.split()) for p in load_problems(source_config("arithmetic", overrides))[0]}
        assert not trained & set(questions) and not any(map(is_held_out, trained))
    assert Counter(p.level for p in benchmarks["arithmetic-test"]) == {3: 167, 4: 167, 5: 166}


def test_arithmetic_answers_are_right() -> None:
    """Every question that is a bare expression, evaluated by Python instead of by the chain that made it."""
    checked = 0
    for problem in load_problems(source_config("arithmetic"))[0]:
        if problem.question.startswith("Compute "):
            tree = ast.parse(problem.question.removeprefix("Compute ").removesuffix("."), mode="eval")
            assert _exact(tree.body) == Fraction(problem.answer), problem.question
            checked += 1
    assert checked > 2000


def _exact(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    left, right = _exact(node.left), _exact(node.right)
    operations = {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}
    return left / right if isinstance(node.op, ast.Div) else operations[type(node.op)]


def test_more_arithmetic_than_there_is_says_so() -> None:
    # Level 1 asks for the remainder of 10 .. 99 by 3 .. 9: 630 questions. Nothing else is drawn here.
    rng = Random(0)
    with pytest.raises(DataError, match=r"modular: only \d+ distinct exercises in 100000 draws, 1000 wanted; ask for"):
        _distinct("modular", 1000, lambda: Exercise(*_modular(rng, 1), 1, "modular"), held_out=False)


def test_both_spellings_of_a_benchmark_are_one() -> None:
    assert benchmark_module("minerva-math") is benchmark_module("minerva_math")
    with pytest.raises(ConfigError, match="did you mean 'math500'"):
        load_benchmark("math50")


def test_a_benchmark_of_your_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from simplerl.types import Problem\ndef load():\n    return [Problem('a', 'q', '1')]\n")
    assert [problem.id for problem in load_benchmark("mine", path)] == ["a"]


def test_the_data_layer_imports_nothing_heavy() -> None:
    modules = [
        ".".join(path.relative_to(Path(simplerl.__file__).parents[1]).with_suffix("").parts)
        for path in Path(simplerl.__file__).with_name("data").rglob("*.py")
        if path.name != "__init__.py"
    ]
    heavy = "('torch', 'transformers', 'datasets', 'pyarrow', 'huggingface_hub', 'numpy')"
    code = f"import sys, {', '.join([*modules, 'simplerl.cli.data'])}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
