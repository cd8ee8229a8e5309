"""A run folder: the recipe, the environments, every number and every response.

    recipe.toml            the resolved recipe
    environment.json       one entry per session (a resumed run has several)
    metrics.jsonl          one line per training step
    evals.jsonl            one line per evaluation: step, set, temperature
    validation.jsonl       SFT: the loss on the validation problems, one line per evaluation
    events.jsonl           one line for everything lost and for every resume; never truncated
    rollouts/step-000012.parquet            every training response
    evals/step-000012-SET-t0.parquet        every evaluation response
    checkpoints/step-000012/                see `simplerl.storage.checkpoint`

Readers may come at any moment: files appear complete, and a torn last line is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simplerl.config import RENAMED, TrainingRecipe
from simplerl.errors import ConfigError
from simplerl.storage import atomic
from simplerl.storage.files import write_parquet
from simplerl.storage.folder import RecipeFolder, differences, flat, recipe_table
from simplerl.storage.jsonl import Row, line, read_lines
from simplerl.types import GradedRollout

MAY_CHANGE = ("track.", "checkpoint.")
"""Settings that a resumed run may change: they cannot change any number."""

COLUMNS = {
    "step": "int32",
    "problem_id": "string",
    "sample_index": "int32",
    "prompt": "string",
    "question": "string",
    "answer": "string",
    "text": "string",
    "prompt_tokens": "int32",
    "response_tokens": "int32",
    "finish_reason": "string",
    "extracted": "string",
    "verdict": "string",
    "method": "string",
    "reward": "float64",
    "advantage_mean": "float64",
    "policy_version": "int32",
    "level": "int32",
    "subject": "string",
}
"""Columns of a Parquet file of responses; `answer` is the gold answer, `text` the response."""

EVAL_COLUMNS = COLUMNS | {"set": "string", "temperature": "float64"}
"""Columns of the responses of an evaluation."""

RENAMED_METRICS = {
    "ratio/clip_share": "ratio/clip_fraction",
    "length/cut": "length/truncated",
    "pack/fill": "pack/token_utilization",
}
"""Metrics of runs written before 0.2, and their names today."""

_STEP_NAME = re.compile(r"step-(\d+)")


def rollout_row(step: int, graded: GradedRollout, sample_index: int, advantage_mean: float | None = None) -> dict:
    """One response as a row of `COLUMNS`."""
    rollout, verdict, problem = graded.rollout, graded.verdict, graded.rollout.prompt.problem
    return {
        "step": step,
        "problem_id": problem.id,
        "sample_index": sample_index,
        "prompt": rollout.prompt.text,
        "question": problem.question,
        "answer": problem.answer,
        "text": rollout.text,
        "prompt_tokens": len(rollout.prompt.token_ids),
        "response_tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
        "extracted": verdict.extracted,
        "verdict": verdict.label,
        "method": verdict.method,
        "reward": graded.reward,
        "advantage_mean": advantage_mean,
        "policy_version": rollout.policy_version,
        "level": problem.level,
        "subject": problem.subject,
    }


class RunFolder(RecipeFolder):
    """Reads and writes one run folder."""

    # --- opening ------------------------------------------------------------------------------------------------------

    def prepare(self, recipe: TrainingRecipe, environment: Row) -> bool:
        """Create the run, or open the existing one. Returns True if there was one."""
        existed = self.exists
        (self.open if existed else self.create)(recipe, environment)
        return existed

    def create(self, recipe: TrainingRecipe, environment: Row) -> None:
        """Start a run in this folder, which may exist but holds no run yet."""
        if self.exists:
            raise ConfigError(f"{self.path} already holds a run; name another folder with --run-dir")
        self.write_session(recipe_table(recipe), environment)

    def open(self, recipe: TrainingRecipe, environment: Row) -> None:
        """Open this folder's run to resume it. Raises `ConfigError` if its recipe differs, or is older than 0.2."""
        stored = self.read_recipe()
        if old := renamed_keys(stored):
            raise ConfigError(
                f"{self.path} was written before 0.2 ({old[0]}) and cannot be resumed; its report and its exports can "
                "be read. Name another folder with --run-dir"
            )
        self.refuse(
            differences(stored, recipe_table(recipe), MAY_CHANGE),
            "a run of another recipe",
            "Name another folder with --run-dir, or continue this run without the --set that differs "
            "(only track.* and checkpoint.* may change)",
        )
        self.write_session(recipe_table(recipe), environment)

    # --- writing ------------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Row) -> None:
        """Append a durable line to `metrics.jsonl`; `row` has "step". NaN and Inf become null."""
        atomic.append_line(self.path / "metrics.jsonl", line(row))

    def append_eval(self, row: Row) -> None:
        """Append a durable line to `evals.jsonl`; `row` has "step", "set" and "temperature"."""
        atomic.append_line(self.path / "evals.jsonl", line(row))

    def append_validation(self, row: Row) -> None:
        """Append a durable line to `validation.jsonl`; `row` has "step", "loss", "tokens" and "sequences"."""
        atomic.append_line(self.path / "validation.jsonl", line(row))

    def append_event(self, step: int, kind: str, text: str) -> None:
        """Append a durable line to `events.jsonl`: the event after `step` steps, `time` in UTC."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        atomic.append_line(self.path / "events.jsonl", line({"time": now, "step": step, "kind": kind, "text": text}))

    def write_rollouts(self, step: int, rows: Sequence[Row]) -> Path:
        """Write every response of a training step, see `rollout_row`."""
        return write_parquet(self.path / "rollouts" / f"step-{step:06d}.parquet", rows, COLUMNS)

    def write_eval_responses(self, step: int, set_name: str, temperature: float, rows: Sequence[Row]) -> Path:
        """Write every response of one evaluation, see `rollout_row`; set and temperature are added to each."""
        name = re.sub(r"[^\w.-]", "_", set_name)
        path = self.path / "evals" / f"step-{step:06d}-{name}-t{temperature:g}.parquet"
        return write_parquet(path, [{**row, "set": set_name, "temperature": temperature} for row in rows], EVAL_COLUMNS)

    def truncate_after(self, step: int) -> None:
        """Remove everything after a step: lines, files of responses, checkpoints, torn lines, leftovers.

        Only what a complete checkpoint holds counts. `truncate_after(-1)` also removes the evaluation before step 1.
        """
        for name in ("metrics.jsonl", "evals.jsonl", "validation.jsonl"):
            _truncate_lines(self.path / name, step)
        for folder in (self.path / "rollouts", self.path / "evals", self.path / "checkpoints"):
            for later, path in _named_by_step(folder) + _named_by_step(folder, atomic.REPLACED):
                if later > step:
                    atomic.remove(path)
            atomic.remove_leftovers(folder)
        atomic.remove_leftovers(self.path)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_recipe(self) -> dict[str, Any]:
        """The stored recipe as a table, without settings that are None. Raises `ConfigError` if there is no run."""
        stored = self.stored_recipe()
        if stored is None:
            raise ConfigError(f"{self.path} holds no run: there is no recipe.toml in it")
        return stored

    def read_metrics(self) -> list[dict[str, Any]]:
        """Metrics of every step, under today's names."""
        rows = read_lines(self.path / "metrics.jsonl")
        return [{RENAMED_METRICS.get(name, name): value for name, value in row.items()} for row in rows]

    def read_evals(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path / "evals.jsonl"))

    def read_validation(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path / "validation.jsonl"))

    def read_events(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path / "events.jsonl"))

    def rollout_files(self) -> list[tuple[int, Path]]:
        """Complete files of training responses as (step, path), in order."""
        return _named_by_step(self.path / "rollouts")

    def eval_files(self) -> list[tuple[int, Path]]:
        """Complete files of evaluation responses as (step, path), in order."""
        return _named_by_step(self.path / "evals")


def renamed_keys(stored: Row) -> list[str]:
    """Settings of a stored recipe that have another name today."""
    return [key for key in flat(stored) if key in RENAMED]


# --- files ----------------------------------------------------------------------------------------------------------


def _truncate_lines(path: Path, step: int) -> None:
    if path.exists():
        kept = [line(row) + b"\n" for row in read_lines(path) if row["step"] <= step]
        atomic.write_bytes(path, b"".join(kept))


def _named_by_step(folder: Path, prefix: str = "") -> list[tuple[int, Path]]:
    """Entries of a folder whose name begins with step-N, in order. Temporary names begin otherwise."""
    found = ((_STEP_NAME.match(path.name, len(prefix)), path) for path in folder.glob(f"{prefix}step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)
