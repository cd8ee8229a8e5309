"""The folder of a distillation: the recipe, where it ran, every answer, and the ones that are kept.

    recipe.toml          the resolved recipe
    environment.json     one entry per session
    provenance.json      what made the answers: model, prompt, sampling; an entry more where url or versions changed
    responses.jsonl      every answer, a durable line the moment it arrived
    outcomes.jsonl          verdict and outcome of each
    kept.jsonl           the training data, which comes last; kept.parquet holds the same
    yields.json          how much was kept, per level, and why the rest was not; yields.md is the table

An answer that is there is never asked for again.
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
"""Settings that may change: the answers stay, and are looked at again."""

ELSEWHERE = ("url", "path", "versions")
"""Parts of a provenance that may differ from session to session."""

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
"""Columns of the training data; `answer` is the gold answer, `response` what is to be learnt."""


class DistillFolder(RecipeFolder):
    """Reads and writes one distillation."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kept = self.path / "kept.jsonl"

    def is_finished(self, recipe: DistillRecipe) -> bool:
        """True if the training data of this very recipe is here."""
        stored = self.stored_recipe()
        return self.kept.exists() and stored is not None and lasting(stored, recipe) == lasting_table(recipe)

    def prepare(self, recipe: DistillRecipe, environment: Row) -> None:
        """Start the distillation, or resume the one that is here. Raises `ConfigError` where that is another one."""
        stored = self.stored_recipe()
        if stored is not None:
            free = ", ".join(f"teacher.{name}" for name in sorted(may_change(recipe)))
            self.refuse(
                differences(lasting(stored, recipe), lasting_table(recipe), SELECTION),
                "another distillation",
                f"Name another folder with --out (these may change: filter.*, verifier.*{free and ', ' + free})",
            )
        atomic.remove_leftovers(self.path)
        # Before the recipe: what is kept never stands beside a recipe that would keep something else.
        self.kept.unlink(missing_ok=True)
        self.write_session(recipe_table(recipe), environment)

    def check_provenance(self, provenance: Row) -> None:
        """Keeps what makes the answers. Raises `ConfigError` where those that are here were made by something else."""
        path = self.path / "provenance.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        found = differences(_identity(stored[0]), _identity(provenance)) if stored else []
        self.refuse(found, "answers of another teacher", "Name another folder with --out")
        if provenance not in stored:
            atomic.write_json(path, [*stored, provenance])

    # --- answers ------------------------------------------------------------------------------------------------------

    def append(self, asked: Asked, answer: Answer) -> None:
        """Keeps one answer."""
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
        """The answers that are here, by their identifiers. Raises `DataError` for one to a question not asked now."""
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
        """Everything that follows from the answers. kept.jsonl comes last: with it the distillation is finished."""
        atomic.write_bytes(self.path / "outcomes.jsonl", b"".join(line(row) + b"\n" for row in outcomes))
        atomic.write_json(self.path / "yields.json", yields)
        atomic.write_text(self.path / "yields.md", as_markdown(yields))
        write_parquet(self.path / "kept.parquet", kept, KEPT_COLUMNS)
        atomic.write_bytes(self.kept, b"".join(orjson.dumps(_encodable(row)) + b"\n" for row in kept))


def may_change(recipe: DistillRecipe) -> frozenset[str]:
    """Settings of the teacher that change no answer."""
    return getattr(recipe.teacher, "may_change", frozenset())


def lasting(table: Row, recipe: DistillRecipe) -> Table:
    """The settings of a stored recipe that decide the training data."""
    teacher = {key: value for key, value in table.get("teacher", {}).items() if key not in may_change(recipe)}
    return {key: value for key, value in table.items() if key != "description"} | {"teacher": teacher}


def lasting_table(recipe: DistillRecipe) -> Table:
    return lasting(recipe_table(recipe), recipe)


def recipe_sha256(recipe: DistillRecipe) -> str:
    """Of the settings that decide the training data."""
    return hashlib.sha256(orjson.dumps(lasting_table(recipe), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _identity(provenance: Row) -> Table:
    return {key: value for key, value in provenance.items() if key not in ELSEWHERE}


def _answer(row: Row) -> Answer:
    return Answer(row["id"], row["text"], row["tokens"], row["finish_reason"], row["reason"], row["prompt_tokens"])


def _encodable(row: Row) -> Table:
    return {key: encodable(value) for key, value in row.items()}
