"""Parquet files of a run's responses, read column by column.

A finished file never changes, so results computed from it can be cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from simplerl.formatting import to_utf8
from simplerl.report.run_data import EvalKey, Row, RunData
from simplerl.storage.records import RunFolder

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class ResponseFile:
    """One file of responses. `stamp` is its time and size: a resumed run may write a step again."""

    path: Path
    step: int
    stamp: tuple[int, int]

    def read(self, columns: Sequence[str], ids: Sequence[str] | None = None) -> pyarrow.Table:
        """Columns of the responses, of all problems or of those named. Missing columns are null."""
        import pyarrow
        import pyarrow.parquet as parquet

        wanted = None if ids is None else [("problem_id", "in", ids)]
        there = parquet.read_schema(self.path).names
        # opened here: given a path, pyarrow would look for a data set of many files
        with self.path.open("rb") as file:
            table = parquet.read_table(file, columns=[name for name in columns if name in there], filters=wanted)
        for name in columns:
            if name not in there:
                table = table.append_column(name, pyarrow.nulls(len(table)))
        return table


def training_files(run: RunData) -> list[ResponseFile]:
    """Training responses of every step, by step."""
    return [_stamped(step, path) for step, path in RunFolder(run.path).rollout_files()]


def eval_files(run: RunData) -> list[ResponseFile]:
    """Responses of every evaluation, by step: during training, and added later."""
    return [_stamped(step, path) for step, path in sorted([*RunFolder(run.path).eval_files(), *run.added])]


@lru_cache(maxsize=4096)
def eval_key(file: ResponseFile) -> EvalKey | None:
    """Set and temperature of an evaluation's file. None: it is empty."""
    rows = file.read(("set", "temperature")).slice(0, 1).to_pylist()
    return EvalKey(rows[0]["set"], float(rows[0]["temperature"])) if rows else None


def eval_responses(run: RunData, step: int, key: EvalKey, columns: Sequence[str]) -> list[Row]:
    """Responses of one evaluation; empty if none were stored."""
    files = [file for file in eval_files(run) if file.step == step and eval_key(file) == key]
    return [row for file in files for row in file.read(columns).to_pylist()]


def _stamped(step: int, path: Path) -> ResponseFile:
    found = path.stat()
    return ResponseFile(path, step, (found.st_mtime_ns, found.st_size))


def spread_out(files: Sequence[ResponseFile], most: int) -> list[ResponseFile]:
    """At most `most` files, at steps divisible by the smallest power of two that leaves few enough.

    A growing run keeps most of its choice, so cached results stay useful.
    """
    stride = 1
    while sum(file.step % stride == 0 for file in files) > most:
        stride *= 2
    return [file for file in files if file.step % stride == 0]


def draw(*name: object) -> str:
    """A number drawn for a name: sorting by it shuffles, equally every time and on every machine."""
    return sha256(to_utf8("/".join(map(str, name)))).hexdigest()
