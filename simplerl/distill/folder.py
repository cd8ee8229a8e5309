"""The folder of a distillation: the recipe, the environments, every answer, and the training data.

    recipe.toml          the resolved recipe
    environment.json     one entry per session
    provenance.json      origin of the answers: model, prompt, sampling; one more entry if url or versions changed
    responses.jsonl      every answer, a durable line at its arrival
    outcomes.jsonl       verdict and outcome of each
    kept.jsonl           the training data, written last; kept.parquet holds the same rows
    yields.json          kept responses per level, and reasons for the rest; yields.md is the table

A stored answer is never requested again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from simplerl.config import DistillRecipe
from simplerl.distill.teachers.base import Answer, Asked
from simplerl.distill.yields import as_markdown
from simplerl.errors import DataError
from simplerl.formatting import replace_surrogates
from simplerl.storage import atomic
from simplerl.storage.files import encodable, write_parquet
from simplerl.storage.folder import RecipeFolder, differences, recipe_table
from simplerl.storage.jsonl import Row, line, read_lines

Table = dict[str, Any]

SELECTION = ("filter.", "verifier.")
"""Settings that may change between sessions: answers stay and are filtered again."""

ELSEWHERE = ("url", "path", "versions")
"""Parts of a provenance that may differ between sessions."""

KEPT_COLUMNS = {
    "id": "string",
    "problem_id": "string",
    "sample_index": "int32",
    "problem": "string",
    "answer": "string",
    "level": "int32",
    "subject": "string",
    "source": "string",
    "response": "string",
    "tokens": "int32",
    "verdict": "string",
    "method": "string",
    "extracted": "string",
    "teacher": "string",
    "temperature": "float64",
    "recipe_sha256": "string",
}
"""Columns of the training data; `answer` is the gold answer, `response` the text to learn."""


class DistillFolder(RecipeFolder):
    """Reads and writes one distillation."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kept = self.path / "kept.jsonl"

    def is_finished(self, recipe: DistillRecipe) -> bool:
        """True if the folder holds the training data of this recipe."""
        stored = self.stored_recipe()
        return self.kept.exists() and stored is not None and lasting(stored, recipe) == lasting_table(recipe)

    def prepare(self, recipe: DistillRecipe, environment: Row) -> None:
        """Create the folder, or open it to resume. Raises `ConfigError` if it holds another distillation."""
        stored = self.stored_recipe()
        if stored is not None:
            free = ", ".join(f"teacher.{name}" for name in sorted(may_change(recipe)))
            self.refuse(
                differences(lasting(stored, recipe), lasting_table(recipe), SELECTION),
                "another distillation",
                f"Name another folder with --out (these may change: filter.*, verifier.*{free and ', ' + free})",
            )
        atomic.remove_leftovers(self.path)
        # written before the recipe, so that training data never lies beside a recipe that would filter otherwise
        self.kept.unlink(missing_ok=True)
        self.write_session(recipe_table(recipe), environment)

    def check_provenance(self, provenance: Row) -> None:
        """Record the origin of the answers. Raises `ConfigError` if stored answers have another origin."""
        path = self.path / "provenance.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        found = differences(_identity(stored[0]), _identity(provenance)) if stored else []
        self.refuse(found, "answers of another teacher", "Name another folder with --out")
        if provenance not in stored:
            atomic.write_json(path, [*stored, provenance])

    # --- answers ------------------------------------------------------------------------------------------------------

    def append(self, asked: Asked, answer: Answer) -> None:
        """Append one answer durably."""
        row = {
            "id": asked.id,
            "problem_id": asked.problem.id,
            "sample_index": asked.sample_index,
            "question": asked.problem.question,
            "text": answer.text,
            "tokens": answer.tokens,
            "prompt_tokens": answer.prompt_tokens,
            "finish_reason": answer.finish_reason,
            "reason": answer.reason,
        }
        atomic.append_line(self.path / "responses.jsonl", orjson.dumps(_encodable(row)))

    def answers(self, asked: Iterable[Asked]) -> dict[str, Answer]:
        """Stored answers by id. Raises `DataError` for an answer to a question that is not in this distillation."""
        questions = {each.id: replace_surrogates(each.problem.question) for each in asked}
        found: dict[str, Answer] = {}
        for row in read_lines(self.path / "responses.jsonl"):
            if questions.get(row["id"]) != row["question"]:
                raise DataError(
                    f"{self.path} holds an answer to another question under {row['id']!r}: the data set has changed "
                    "since. Bring it back as it was, or name another folder with --out"
                )
            found[row["id"]] = _answer(row)
        return found

    # --- results ------------------------------------------------------------------------------------------------------

    def finish(self, kept: Sequence[Row], outcomes: Sequence[Row], yields: Table) -> None:
        """Write everything that follows from the answers. kept.jsonl is last: with it the distillation is finished."""
        atomic.write_bytes(self.path / "outcomes.jsonl", b"".join(line(row) + b"\n" for row in outcomes))
        atomic.write_json(self.path / "yields.json", yields)
        atomic.write_text(self.path / "yields.md", as_markdown(yields))
        write_parquet(self.path / "kept.parquet", kept, KEPT_COLUMNS)
        atomic.write_bytes(self.kept, b"".join(orjson.dumps(_encodable(row)) + b"\n" for row in kept))


def may_change(recipe: DistillRecipe) -> frozenset[str]:
    """Settings of the teacher that change no answer."""
    return getattr(recipe.teacher, "may_change", frozenset())


def lasting(table: Row, recipe: DistillRecipe) -> Table:
    """Settings of a stored recipe that decide the training data."""
    teacher = {key: value for key, value in table.get("teacher", {}).items() if key not in may_change(recipe)}
    return {key: value for key, value in table.items() if key != "description"} | {"teacher": teacher}


def lasting_table(recipe: DistillRecipe) -> Table:
    return lasting(recipe_table(recipe), recipe)


def recipe_sha256(recipe: DistillRecipe) -> str:
    """Digest of the settings that decide the training data."""
    return hashlib.sha256(orjson.dumps(lasting_table(recipe), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _identity(provenance: Row) -> Table:
    return {key: value for key, value in provenance.items() if key not in ELSEWHERE}


def _answer(row: Row) -> Answer:
    return Answer(row["id"], row["text"], row["tokens"], row["finish_reason"], row["reason"], row["prompt_tokens"])


def _encodable(row: Row) -> Table:
    return {key: encodable(value) for key, value in row.items()}
