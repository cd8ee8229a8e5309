"""The 8K MATH problems with MATH's own solutions: the SFT baseline's set."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.overlap import exact_key
from simplerl.data.sources import math_lvl3to5
from simplerl.data.sources.math import SET as MATH
from simplerl.types import Problem

PARTS = (math_lvl3to5.SET, MATH)
repair = math_lvl3to5.repair


class Config(StoredConfig):
    """8,523 MATH problems of levels 3-5, each with the solution that MATH gives."""

    name: Literal["math-solutions"] = "math-solutions"


def load(config: Config) -> list[Problem]:
    problems = stored_problems(math_lvl3to5.SET, config.data_path)
    if all(problem.solution for problem in problems):
        return problems
    # The hub's copy of the 8K problems has no solutions; all of them are among MATH's 12,000.
    solutions = {exact_key(p.question): p.solution for p in stored_problems(MATH, config.data_path)}
    return [replace(p, solution=p.solution or solutions.get(exact_key(p.question))) for p in problems]
