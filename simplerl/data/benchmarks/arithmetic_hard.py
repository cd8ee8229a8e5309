"""500 problems harder than any trained on: chains of three operations."""

from __future__ import annotations

from simplerl.data.arithmetic import held_out_benchmark
from simplerl.data.exercises import draw_hard
from simplerl.types import Problem


def load() -> list[Problem]:
    return held_out_benchmark("arithmetic-hard", draw_hard)
