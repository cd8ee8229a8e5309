"""A data set of the Hugging Face hub, by its name."""

from __future__ import annotations

from typing import Literal

from simplerl.data.base import SourceConfig
from simplerl.data.hub import HubTable, read_hub
from simplerl.data.rows import Keys, problems_from
from simplerl.types import Problem


class Config(SourceConfig):
    """A data set of the Hugging Face hub."""

    name: Literal["hub"] = "hub"

    repo: str
    """Its name, for example `openai/gsm8k`."""

    split: str = "train"
    subset: str | None = None
    """The configuration, of data sets that have several."""

    file: str | None = None
    """One file of the repository, used instead of the files its card declares."""

    revision: str | None = None
    """Branch, tag or commit; a commit makes the run repeatable."""

    keys: Keys = Keys()
    """Which key of a row holds what."""


def load(config: Config) -> list[Problem]:
    table = HubTable(config.repo, config.split, config.subset, config.file, config.revision)
    return problems_from(read_hub(table), config.keys, config.repo)
