"""GSM8K and the MATH problems of level 1: SimpleRL-Zoo's easy set, for models that MATH 3-5 gives no signal."""

from __future__ import annotations

from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.sources.gsm8k import SET as GSM8K
from simplerl.data.sources.math import SET as MATH
from simplerl.types import Problem

PARTS = (GSM8K, MATH)

USABLE_PROBLEMS = 8431
"""Problems that are fit for training, see `load_problems`; known without reading the set."""


class Config(StoredConfig):
    """GSM8K's training split and level 1 of the 12,000 MATH problems."""

    name: Literal["gsm8k-math1"] = "gsm8k-math1"


def load(config: Config) -> list[Problem]:
    easy = [problem for problem in stored_problems(MATH, config.data_path) if problem.level == 1]
    return stored_problems(GSM8K, config.data_path) + easy
