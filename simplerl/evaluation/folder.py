"""The folder of an evaluation: the plan, where it ran, and every response.

    eval.toml                    the plan
    environment.json             one entry per session
    responses/PART.jsonl         finished responses of a part that is not finished
    responses/PART/all.parquet   every response of a finished part
    results.json                 the table

A response is in its file the moment it is finished, so nothing is generated twice after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from simplerl.evaluation.suite import Plan
from simplerl.storage import atomic
from simplerl.storage.files import write_parquet
from simplerl.storage.folder import RecipeFolder, differences, recipe_table
from simplerl.storage.jsonl import Row, read_lines
from simplerl.storage.records import EVAL_COLUMNS
from simplerl.verifiers.base import DEFAULT_VERIFIER


class EvalFolder(RecipeFolder):
    """Reads and writes one evaluation."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "eval.toml")

    def prepare(self, plan: Plan, environment: Row) -> None:
        """Create the folder, or open it to resume. Raises `ConfigError` if it holds another evaluation."""
        stored, given = self.stored_recipe(), recipe_table(plan)
        if stored is not None:
            # Plans written before 0.2 name no verifier.
            stored = {"verifier": DEFAULT_VERIFIER, "verifier_settings": {}} | stored
            self.refuse(differences(stored, given), "another evaluation", "Name another folder with --out")
        self.write_session(given, environment)

    def is_finished(self, part: str) -> bool:
        return self._table(part).exists()

    def finished(self, part: str) -> list[dict[str, Any]]:
        """The responses of an unfinished part that are there already."""
        return list(read_lines(self._journal(part)))

    def append(self, part: str, row: Row) -> None:
        """Keeps one response."""
        self._journal(part).parent.mkdir(parents=True, exist_ok=True)
        atomic.append_line(self._journal(part), orjson.dumps(row))

    def finish(self, part: str, rows: Sequence[Row]) -> None:
        """Every response of a part, in the order of problems and samples."""
        write_parquet(self._table(part), rows, EVAL_COLUMNS)
        self._journal(part).unlink(missing_ok=True)

    def write_results(self, results: Mapping[str, Any]) -> None:
        atomic.write_json(self.path / "results.json", results)

    def read(self, part: str) -> list[dict[str, Any]]:
        """The responses of a finished part."""
        import pyarrow.parquet

        return pyarrow.parquet.read_table(self._table(part)).to_pylist()

    def _table(self, part: str) -> Path:
        return self.path / "responses" / part / "all.parquet"

    def _journal(self, part: str) -> Path:
        return self.path / "responses" / f"{part}.jsonl"
