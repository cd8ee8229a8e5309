"""500 problems in wordings and forms that neither the base model's corpus nor training has."""

from __future__ import annotations

from simplerl.data.arithmetic import held_out_benchmark
from simplerl.data.exercises import draw_unseen
from simplerl.types import Problem


def load() -> list[Problem]:
    return held_out_benchmark("arithmetic-unseen", draw_unseen)
