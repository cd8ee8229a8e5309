"""Which problems a teacher is asked: levels first, then no benchmark's, then no more than wanted."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from simplerl.config import DistillRecipe, validate_recipe
from simplerl.data.base import load_benchmark
from simplerl.distill.problems import choose_problems, drawn, questions
from simplerl.errors import DataError
from simplerl.seeding import seed_for
from simplerl.types import Problem

pytestmark = pytest.mark.unit

PROBLEMS = [Problem(f"p{n}", f"Q{n}", "7") for n in range(20)]


def recipe_of(**data: Any) -> DistillRecipe:
    table = {"kind": "distill", "seed": 3, "teacher": {"name": "local", "model": "none"}, "data": data}
    return validate_recipe(table | {"sampling": {"samples_per_problem": 3}}, kind=DistillRecipe)


def file_of(tmp_path: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return {"name": "file", "data_path": str(path)}


def test_levels() -> None:
    source = {"name": "arithmetic", "size": 30}
    chosen = choose_problems(recipe_of(source=source, levels=[4, 5]).data, 0)
    assert {problem.level for problem in chosen.problems} == {4, 5} and len(chosen.problems) == 20
    with pytest.raises(DataError, match=r"data.levels=\[9\] keeps none of 30 problems; theirs are \[3, 4, 5\]"):
        choose_problems(recipe_of(source=source, levels=[9]).data, 0)


def test_problems_of_a_benchmark_are_left_out_and_counted(tmp_path: Any) -> None:
    known = [problem.question for problem in load_benchmark("arithmetic-test")[:2]]
    rows = [{"question": text, "answer": "1"} for text in ["Mine?", known[0], f"  {known[1].upper()} ", "Mine too?"]]
    benchmarks = ["arithmetic-test", "arithmetic-hard"]
    chosen = choose_problems(recipe_of(source=file_of(tmp_path, rows), benchmarks=benchmarks).data, 0)
    assert [problem.question for problem in chosen.problems] == ["Mine?", "Mine too?"]
    assert chosen.left_out == 2
    assert chosen.overlap["arithmetic-test"] == {"exact": 1, "format-insensitive": 1, "13-gram": 0}
    assert list(chosen.notices) == ["2 of 4 problems occur in a benchmark and are left out"]
    with pytest.raises(DataError, match=r"all 2 problems occur in a benchmark \(arithmetic-test\)"):
        source = file_of(tmp_path, rows[1:3])
        choose_problems(recipe_of(source=source, benchmarks=["arithmetic-test"]).data, 0)


def test_a_limit_draws_by_the_seed_and_keeps_the_order() -> None:
    few = [problem.id for problem in drawn(PROBLEMS, 5, 0)]
    assert len(set(few)) == 5 and few == sorted(few, key=lambda id: int(id[1:]))
    assert few == [problem.id for problem in drawn(PROBLEMS, 5, 0)]
    assert few != [problem.id for problem in drawn(PROBLEMS, 5, 1)]
    assert set(few) < {problem.id for problem in drawn(PROBLEMS, 9, 0)}
    assert drawn(PROBLEMS, None, 0) == PROBLEMS == drawn(PROBLEMS, 99, 0)


def test_seeds_depend_on_what_they_are_for() -> None:
    asked = questions(PROBLEMS[:2], recipe_of(source="arithmetic"))
    assert [each.id for each in asked] == ["p0#0", "p0#1", "p0#2", "p1#0", "p1#1", "p1#2"]
    assert asked[4].seed == seed_for(3, "distill", "p1", 1)
    assert len({each.seed for each in asked}) == 6
    assert questions(PROBLEMS[1:2], recipe_of(source="arithmetic")) == asked[3:], "the others of a set do not matter"
