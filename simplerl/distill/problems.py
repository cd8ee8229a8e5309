"""The problems a teacher is asked: of the wanted levels, none from a benchmark, and no more than wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from simplerl.config import DistillDataConfig, DistillRecipe
from simplerl.data.base import load_benchmark, load_problems
from simplerl.data.overlap import Kind, count, find_overlap
from simplerl.distill.teachers.base import Asked
from simplerl.errors import DataError
from simplerl.seeding import permutation, seed_for
from simplerl.types import Problem


@dataclass(frozen=True, slots=True)
class Chosen:
    """The problems in the order of their set, what should be said of them, and how many a benchmark holds too."""

    problems: Sequence[Problem]
    notices: Sequence[str] = ()
    overlap: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    """Problems left out, per benchmark and kind of overlap; "any" counts each once."""

    @property
    def left_out(self) -> int:
        return sum(self.overlap.get("any", {}).values())


def choose_problems(
    data: DistillDataConfig, seed: int, is_usable: Callable[[Problem], bool] = lambda problem: problem.has_answer
) -> Chosen:
    """Raises `DataError` when nothing is left. `is_usable` is the verifier's rule, see `load_problems`."""
    found, notices = load_problems(data.source, is_usable)
    wanted = [problem for problem in found if not data.levels or problem.level in data.levels]
    if not wanted:
        levels = sorted({problem.level for problem in found if problem.level is not None})
        raise DataError(f"data.levels={list(data.levels)} keeps none of {len(found)} problems; theirs are {levels}")
    fresh, overlap = without_benchmarks(wanted, data.benchmarks)
    left_out = len(wanted) - len(fresh)
    if left_out:
        notices = [*notices, f"{left_out} of {len(wanted)} problems occur in a benchmark and are not asked"]
    if not fresh:
        raise DataError(f"all {len(wanted)} problems occur in a benchmark ({', '.join(data.benchmarks)})")
    return Chosen(drawn(fresh, data.limit, seed), notices, overlap)


def without_benchmarks(
    problems: Sequence[Problem], names: Sequence[str]
) -> tuple[list[Problem], dict[str, dict[Kind, int]]]:
    """The problems that occur in none of the benchmarks, and the count of those that do."""
    if not names:
        return list(problems), {}
    matches = find_overlap(problems, {name: load_benchmark(name) for name in names})
    known = {match.problem_id for match in matches}
    return [problem for problem in problems if problem.id not in known], count(matches)


def drawn(problems: Sequence[Problem], limit: int | None, seed: int) -> list[Problem]:
    """So many problems, drawn by the seed, in the order they had."""
    if limit is None:
        return list(problems)
    return [problems[i] for i in sorted(permutation(len(problems), seed, "distill problems")[:limit])]


def questions(problems: Sequence[Problem], recipe: DistillRecipe) -> list[Asked]:
    """`samples_per_problem` per problem, problem by problem."""
    return [
        Asked(f"{problem.id}#{index}", problem, index, seed_for(recipe.seed, "distill", problem.id, index))
        for problem in problems
        for index in range(recipe.sampling.samples_per_problem)
    ]
