"""Generated problems with exact answers, levels 3-5: what the embedded base model learns on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simplerl.data.arithmetic import by_level
from simplerl.data.base import SourceConfig
from simplerl.types import Problem


class Config(SourceConfig):
    """Generated exercises, disjoint from the arithmetic benchmarks."""

    name: Literal["arithmetic"] = "arithmetic"

    size: int = Field(default=8000, ge=1)
    """Problems, in equal shares of the levels."""

    levels: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((3, 4, 5), min_length=1)
    """Difficulties, 1 (one operation on two digits) to 5 (two operations on three digits)."""

    seed: int = 0
    """Seed of the problems; the run's seed only shuffles them."""


def load(config: Config) -> list[Problem]:
    return by_level("arithmetic", config.size, sorted(set(config.levels)), config.seed, held_out=False)
