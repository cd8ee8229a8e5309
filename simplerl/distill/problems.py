"""The problems for a teacher: of the chosen levels, in no benchmark, limited in number."""

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
    """Problems in the order of their set, notices for the user, and counts of overlap with benchmarks."""

    problems: Sequence[Problem]
    notices: Sequence[str] = ()
    overlap: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    """Problems left out, per benchmark and kind of overlap; "any" counts each problem once."""

    @property
    def left_out(self) -> int:
        return sum(self.overlap.get("any", {}).values())


def choose_problems(
    data: DistillDataConfig, seed: int, is_usable: Callable[[Problem], bool] = lambda problem: problem.has_answer
) -> Chosen:
    """Choose the problems; `is_usable` is the verifier's rule, see `load_problems`. Raises `DataError` for none."""
    found, notices = load_problems(data.source, is_usable)
    wanted = [problem for problem in found if not data.levels or problem.level in data.levels]
    if not wanted:
        levels = sorted({problem.level for problem in found if problem.level is not None})
        raise DataError(f"data.levels={list(data.levels)} keeps none of {len(found)} problems; theirs are {levels}")
    fresh, overlap = without_benchmarks(wanted, data.benchmarks)
    left_out = len(wanted) - len(fresh)
    if left_out:
        notices = [*notices, f"{left_out} of {len(wanted)} problems occur in a benchmark and are left out"]
    if not fresh:
        raise DataError(f"all {len(wanted)} problems occur in a benchmark ({', '.join(data.benchmarks)})")
    return Chosen(drawn(fresh, data.limit, seed), notices, overlap)


def without_benchmarks(
    problems: Sequence[Problem], names: Sequence[str]
) -> tuple[list[Problem], dict[str, dict[Kind, int]]]:
    """The problems that occur in no benchmark, and counts of the others."""
    if not names:
        return list(problems), {}
    matches = find_overlap(problems, {name: load_benchmark(name) for name in names})
    known = {match.problem_id for match in matches}
    return [problem for problem in problems if problem.id not in known], count(matches)


def drawn(problems: Sequence[Problem], limit: int | None, seed: int) -> list[Problem]:
    """`count` problems drawn by the seed, in their original order."""
    if limit is None:
        return list(problems)
    return [problems[i] for i in sorted(permutation(len(problems), seed, "distill problems")[:limit])]


def questions(problems: Sequence[Problem], recipe: DistillRecipe) -> list[Asked]:
    """`samples_per_problem` questions per problem, problem by problem."""
    return [
        Asked(f"{problem.id}#{index}", problem, index, seed_for(recipe.seed, "distill", problem.id, index))
        for problem in problems
        for index in range(recipe.sampling.samples_per_problem)
    ]
