"""A JSONL, JSON or Parquet file of your own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from simplerl.data.base import SourceConfig
from simplerl.data.rows import Keys, problems_from, read_table
from simplerl.errors import DataError
from simplerl.types import Problem


class Config(SourceConfig):
    """A file of your own: one object or row per problem."""

    name: Literal["file"] = "file"

    data_path: str
    """The file: .jsonl, .json (both also .gz) or .parquet."""

    keys: Keys = Keys()
    """Which key of a row holds what."""

    sha256: str | None = None
    """Checksum the file must have; empty takes it as it is."""


def load(config: Config) -> list[Problem]:
    path = Path(config.data_path).expanduser()
    rows = read_table(path)
    if config.sha256 is not None:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != config.sha256.lower():
            raise DataError(f"{path} has changed: sha256 is {actual}, the settings say {config.sha256}")
    return problems_from(rows, config.keys, path.name)
