"""Problems made from generated exercises, for the `arithmetic` training set and its held-out benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, zip_longest
from random import Random

from simplerl.data.corpus import brief_solution
from simplerl.data.exercises import Exercise, distinct, draw
from simplerl.errors import DataError
from simplerl.seeding import rng_for
from simplerl.types import Problem

BENCHMARK_SIZE = 500
BENCHMARK_SEED = 0
# One exercise in sixteen is held out, so a benchmark takes about 16 draws per problem.
DRAWS_PER_PROBLEM = 100


def by_level(name: str, size: int, levels: Sequence[int], seed: int, *, held_out: bool) -> list[Problem]:
    """`size` different problems in equal shares of `levels`, the levels taking turns."""
    shares = [size // len(levels) + (place < size % len(levels)) for place in range(len(levels))]
    columns = [
        _distinct(name, share, partial(draw, rng_for(seed, name, level), level), held_out=held_out)
        for share, level in zip(shares, levels, strict=True)
    ]
    rounds = chain.from_iterable(zip_longest(*columns))
    return _problems(name, [exercise for exercise in rounds if exercise is not None])


def held_out_benchmark(name: str, draw_one: Callable[[Random], Exercise]) -> list[Problem]:
    """A benchmark of held-out exercises of one kind."""
    rng = rng_for(BENCHMARK_SEED, name)
    return _problems(name, _distinct(name, BENCHMARK_SIZE, partial(draw_one, rng), held_out=True))


def _distinct(name: str, count: int, draw_one: Callable[[], Exercise], *, held_out: bool) -> list[Exercise]:
    if count == 0:
        return []
    try:
        return distinct(count, draw_one, held_out=held_out, limit=DRAWS_PER_PROBLEM)
    except ValueError as error:
        raise DataError(f"{name}: {error}; ask for a smaller size, or for more levels") from None


def _problems(name: str, exercises: Sequence[Exercise]) -> list[Problem]:
    return [
        Problem(
            f"{name}/{number}",
            e.question,
            e.answer,
            level=e.level,
            subject=e.family,
            source=f"generated:{name}",
            solution=brief_solution(e),
        )
        for number, e in enumerate(exercises)
    ]
