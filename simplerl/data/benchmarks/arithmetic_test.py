"""500 held-out problems like those of the `arithmetic` training set, levels 3-5."""

from __future__ import annotations

from simplerl.data.arithmetic import BENCHMARK_SEED, BENCHMARK_SIZE, by_level
from simplerl.types import Problem


def load() -> list[Problem]:
    return by_level("arithmetic-test", BENCHMARK_SIZE, (3, 4, 5), BENCHMARK_SEED, held_out=True)
