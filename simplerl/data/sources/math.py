"""12,000 MATH problems of levels 1-5: all 12,500 without MATH-500."""

from __future__ import annotations

from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet
from simplerl.types import Problem

SET = StoredSet(
    name="math",
    kind="train",
    files=(
        StoredFile("math_train_12k.jsonl", 11851, "4c25cf3efc32368016506915b70dbe0b337211def5da2d7a7f21a5620fe3e70d"),
        StoredFile(
            "math_train_12k_removed_test_overlap.jsonl",
            149,
            "56f28bfdfd18a96788734ccdfd18d2cf082d5dd56206b9940223e2df2c0ce172",
        ),
    ),
    rows_sha256="ade1d8611a6d626f917c4755303142bbd4fcabdbe8ab5545816f37e5c2da765c",
    hub=HubTable("nlile/hendrycks-MATH-benchmark", split="train", keys=Keys(question="problem")),
)

USABLE_PROBLEMS = 11_998
"""Problems that are fit for training, see `load_problems`; known without reading the set."""


class Config(StoredConfig):
    """12,000 MATH problems; two have no answer and are dropped for training."""

    name: Literal["math"] = "math"


def load(config: Config) -> list[Problem]:
    return stored_problems(SET, config.data_path)
