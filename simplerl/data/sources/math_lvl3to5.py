"""8,523 MATH problems of levels 3-5: the training set of SimpleRL-Zero, in its original order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.hub import HubTable
from simplerl.data.rows import Keys
from simplerl.data.store import StoredFile, StoredSet
from simplerl.types import Problem

SET = StoredSet(
    name="math-lvl3to5",
    kind="train",
    files=(
        StoredFile(
            "simplerl_math_lvl3to5_8k.jsonl",
            8397,
            "eb17b33cda12e0e282b07ae64a079e0ec2e4f41aca9ca11cc1508e896295e182",
        ),
        # The problems that also occur in a benchmark: part of the set, kept apart for clean runs.
        StoredFile(
            "simplerl_math_lvl3to5_8k_removed_test_overlap.jsonl",
            126,
            "cfab79e7db8b005812135cef060545175f06acf0c692f29f4f626b61aa7c1751",
        ),
    ),
    rows_sha256="907369309e3ead7ebd1892f3f77a37b25006afa7f705b0fac9694975e88b2b88",
    hub=HubTable(
        "hkust-nlp/SimpleRL-Zoo-Data",
        split="train",
        file="simplelr_qwen_level3to5/train.parquet",
        keys=Keys(question="extra_info.question", answer="extra_info.answer"),
    ),
    prefix="math_lvl3to5_8k",
)
ORIGINAL_BLOB = "a51b46c19354c8ac1c409115f95ee3578c67cedd"
# The published answer of these two is the word "None"; these are what their solutions box.
BOXED = {"math_lvl3to5_8k/3380": "9", "math_lvl3to5_8k/7997": "2"}

USABLE_PROBLEMS = 8521
"""Problems that are fit for training, see `load_problems`; known without reading the set."""


class Config(StoredConfig):
    """8,523 MATH problems of levels 3-5; two have no answer and are dropped for training."""

    name: Literal["math-lvl3to5"] = "math-lvl3to5"


def load(config: Config) -> list[Problem]:
    return stored_problems(SET, config.data_path)


def repair(problems: Sequence[Problem]) -> tuple[list[Problem], list[str]]:
    """The two answers that read "None" replaced by what their solutions box."""
    broken = [problem.id for problem in problems if problem.answer == "None" and problem.id in BOXED]
    repaired = [replace(p, answer=BOXED[p.id]) if p.id in broken else p for p in problems]
    changes = ", ".join(f"{name} is now {BOXED[name]}" for name in broken)
    return repaired, [f"math-lvl3to5: repaired {len(broken)} answers published as 'None': {changes}"] if broken else []
