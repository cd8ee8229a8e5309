"""7,473 word problems: GSM8K's training split."""

from __future__ import annotations

from typing import Literal

from simplerl.data.base import StoredConfig, stored_problems
from simplerl.data.hub import HubTable, after_hashes
from simplerl.data.store import StoredFile, StoredSet
from simplerl.types import Problem

SET = StoredSet(
    name="gsm8k",
    kind="train",
    files=(StoredFile("gsm8k_train.jsonl", 7473, "cec13d5b4bbbddcc98145f38c2d163b1c0c5855cfdebc93184aca5338287f2ea"),),
    rows_sha256="e87469c44077e10bb604b6a791a7e5a6e3a022ba6248559436b87e785ac1631a",
    hub=HubTable("openai/gsm8k", split="train", subset="main", convert=after_hashes),
    prefix="gsm8k_train",
)

USABLE_PROBLEMS = 7473
"""Problems that are fit for training, see `load_problems`; known without reading the set."""


class Config(StoredConfig):
    """GSM8K's 7,473 training problems."""

    name: Literal["gsm8k"] = "gsm8k"


def load(config: Config) -> list[Problem]:
    return stored_problems(SET, config.data_path)
