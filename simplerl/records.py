"""A run folder: what was asked, where it ran, every number and every response.

    recipe.toml            the resolved recipe
    environment.json       one entry per session (a run that was resumed has several)
    metrics.jsonl          one line per training step
    evals.jsonl            one line per evaluation: step, set, temperature
    rollouts/step-000012.parquet            every training response
    evals/step-000012-SET-t0.parquet        every evaluation response
    checkpoints/step-000012/                see `simplerl.checkpoint`

Readers may come at any moment: files appear whole, and a torn last line is not read.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from simplerl import atomic
from simplerl.config import Recipe
from simplerl.errors import ConfigError, SimpleRLError
from simplerl.types import GradedRollout

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, Any]

MAY_CHANGE = ("track.", "checkpoint.")
"""Settings that a resumed run may change: they do not touch what is computed."""

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


class RunFolder:
    """Reads and writes one run folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # --- opening ------------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "recipe.toml").exists()

    def prepare(self, recipe: Recipe, environment: Row) -> bool:
        """Creates the run, or opens the one that is here. Returns whether there was one."""
        existed = self.exists
        (self.open if existed else self.create)(recipe, environment)
        return existed

    def create(self, recipe: Recipe, environment: Row) -> None:
        """Starts a run in this folder, which may exist but holds no run yet."""
        if self.exists:
            raise ConfigError(f"{self.path} already holds a run; name another folder with --run-dir")
        # The recipe comes last: with it the run exists.
        atomic.write_json(self.path / "environment.json", [dict(environment)])
        self._write_recipe(recipe)

    def open(self, recipe: Recipe, environment: Row) -> None:
        """Goes on with the run of this folder. Raises `ConfigError` where the recipe is another one."""
        difference = recipe_difference(self.read_recipe(), recipe_table(recipe))
        if difference:
            raise ConfigError(
                f"{self.path} holds a run of another recipe:\n  " + "\n  ".join(difference) + "\n"
                "Name another folder with --run-dir, or continue this run without the --set that differs "
                "(only track.* and checkpoint.* may change)"
            )
        atomic.write_json(self.path / "environment.json", [*self.read_environments(), dict(environment)])
        self._write_recipe(recipe)

    @contextmanager
    def lock(self, patience: float = 3.0) -> Iterator[None]:
        """Holds the folder for this process; the kernel lets go of it when the process dies, however it dies.

        Waits `patience` seconds, because a killed process with much memory takes a moment to be gone.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        # A forked worker would keep the lock after its parent has died.
        inherited = _closed_in_children(descriptor)
        try:
            _acquire(descriptor, self.path, patience)
            yield
        finally:
            inherited.discard(descriptor)
            os.close(descriptor)

    # --- writing ------------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Row) -> None:
        """One durable line of `metrics.jsonl`; `row` has "step". NaN and Inf are written as null."""
        atomic.append_line(self.path / "metrics.jsonl", _line(row))

    def append_eval(self, row: Row) -> None:
        """One durable line of `evals.jsonl`; `row` has "step", "set" and "temperature"."""
        atomic.append_line(self.path / "evals.jsonl", _line(row))

    def write_rollouts(self, step: int, rows: Sequence[Row]) -> Path:
        """Every response of a training step, see `rollout_row`."""
        return _write_parquet(self.path / "rollouts" / f"step-{step:06d}.parquet", rows, COLUMNS)

    def write_eval_responses(self, step: int, set_name: str, temperature: float, rows: Sequence[Row]) -> Path:
        """Every response of one evaluation, see `rollout_row`; set and temperature are added to each."""
        name = re.sub(r"[^\w.-]", "_", set_name)
        path = self.path / "evals" / f"step-{step:06d}-{name}-t{temperature:g}.parquet"
        return _write_parquet(
            path, [{**row, "set": set_name, "temperature": temperature} for row in rows], EVAL_COLUMNS
        )

    def truncate_after(self, step: int) -> None:
        """Forgets all that came after a step: lines, files of responses, checkpoints, torn lines, leftovers.

        What is not in a complete checkpoint never happened. A run without one goes back to before its first
        evaluation with `truncate_after(-1)`.
        """
        for name in ("metrics.jsonl", "evals.jsonl"):
            _truncate_lines(self.path / name, step)
        for folder in (self.path / "rollouts", self.path / "evals", self.path / "checkpoints"):
            for later, path in _named_by_step(folder) + _named_by_step(folder, atomic.REPLACED):
                if later > step:
                    atomic.remove(path)
            atomic.remove_leftovers(folder)
        atomic.remove_leftovers(self.path)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_recipe(self) -> dict[str, Any]:
        """The stored recipe as a table; settings that are None are absent."""
        path = self.path / "recipe.toml"
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{self.path} holds no run: there is no recipe.toml in it") from None
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error

    def read_environments(self) -> list[dict[str, Any]]:
        """One entry per session, oldest first; empty where the file is missing or damaged."""
        try:
            entries = orjson.loads((self.path / "environment.json").read_bytes())
        except (OSError, ValueError):
            return []
        return entries if isinstance(entries, list) else []

    def read_metrics(self) -> list[dict[str, Any]]:
        return list(_read_lines(self.path / "metrics.jsonl"))

    def read_evals(self) -> list[dict[str, Any]]:
        return list(_read_lines(self.path / "evals.jsonl"))

    def rollout_files(self) -> list[tuple[int, Path]]:
        """Complete files of training responses as (step, path), in order."""
        return _named_by_step(self.path / "rollouts")

    def eval_files(self) -> list[tuple[int, Path]]:
        """Complete files of evaluation responses as (step, path), in order."""
        return _named_by_step(self.path / "evals")

    def _write_recipe(self, recipe: Recipe) -> None:
        import tomli_w

        atomic.write_text(self.path / "recipe.toml", tomli_w.dumps(recipe_table(recipe)))


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as TOML can hold it: None is left out."""
    return recipe.model_dump(mode="json", exclude_none=True)


def recipe_difference(stored: Row, given: Row) -> list[str]:
    """One line per setting that differs and may not, in the order of their names."""
    old, new = _flat(stored), _flat(given)
    keys = sorted(key for key in old.keys() | new.keys() if not key.startswith(MAY_CHANGE))
    return [
        f"{key}: stored {old.get(key, '(not set)')!r}, given {new.get(key, '(not set)')!r}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def _flat(table: Row, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


# --- files ------------------------------------------------------------------------------------------------------------


def _line(row: Row) -> bytes:
    # Names in a fixed order: where a row was gathered through a set, Python's hash seed would decide it.
    first = {key: row[key] for key in ("step", "set", "temperature") if key in row}
    return orjson.dumps(first | dict(sorted(row.items())), option=orjson.OPT_SERIALIZE_NUMPY)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; a last line without its newline is still being written and is not read."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            yield orjson.loads(line)
        except ValueError as error:
            # A crash can leave a last line of zeros; anywhere else the file is damaged and the user should know.
            if number < len(lines):
                raise SimpleRLError(f"{path}, line {number} is damaged: {error}") from error


def _truncate_lines(path: Path, step: int) -> None:
    if path.exists():
        kept = [_line(row) + b"\n" for row in _read_lines(path) if row["step"] <= step]
        atomic.write_bytes(path, b"".join(kept))


def _named_by_step(folder: Path, prefix: str = "") -> list[tuple[int, Path]]:
    """What stands in a folder under a name that begins with step-N, in order; temporary names begin otherwise."""
    found = ((_STEP_NAME.match(path.name, len(prefix)), path) for path in folder.glob(f"{prefix}step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _write_parquet(path: Path, rows: Sequence[Row], columns: Mapping[str, str]) -> Path:
    import pyarrow.parquet

    with atomic.new_file(path) as temporary:
        pyarrow.parquet.write_table(_table(rows, columns), temporary, compression="zstd")
    return path


def _table(rows: Sequence[Row], kinds: Mapping[str, str]) -> pyarrow.Table:
    import pyarrow

    unknown = sorted({key for row in rows for key in row} - kinds.keys())
    if unknown:
        raise ValueError(f"responses have no column {', '.join(unknown)}; known: {', '.join(kinds)}")
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    columns = [[_encodable(row.get(name)) for row in rows] for name in kinds]
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _encodable(value: Any) -> Any:
    """Text without lone surrogates, which UTF-8 cannot hold and a byte-level tokenizer may produce."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


# --- the lock ---------------------------------------------------------------------------------------------------------

_held: set[int] = set()


def _closed_in_children(descriptor: int) -> set[int]:
    if not _held and not getattr(_close_held, "registered", False):
        os.register_at_fork(after_in_child=_close_held)
        _close_held.registered = True  # type: ignore[attr-defined]
    _held.add(descriptor)
    return _held


def _close_held() -> None:
    while _held:
        os.close(_held.pop())


def _acquire(descriptor: int, folder: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
                raise SimpleRLError(
                    f"{folder} is in use by {holder}; wait for it, stop it, or name another folder with --run-dir"
                ) from None
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
