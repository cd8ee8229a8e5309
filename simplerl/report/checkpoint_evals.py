"""Evaluations of a run's checkpoints made after the run, as further points of its curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simplerl.errors import DataError
from simplerl.report.eval_data import EvalData, read_eval
from simplerl.report.run_data import RunData
from simplerl.stats.scores import Scores, score
from simplerl.verifiers.base import same_answer


def with_evaluations(runs: Sequence[RunData], folders: Sequence[Path]) -> list[RunData]:
    """Runs with the evaluations that `simplerl eval RUN --checkpoints ...` wrote into these folders.

    If the run itself evaluated a set at that step and temperature, its own evaluation counts. Raises `DataError` for an
    evaluation of none of the runs.
    """
    found = [one for folder in folders for one in _evaluations(folder)]
    owners = [_owner(one, runs) for one in found]
    return [_extended(run, [one for one, owner in zip(found, owners, strict=True) if owner is run]) for run in runs]


def _evaluations(folder: Path) -> list[EvalData]:
    """Resolve an eval folder, or one that holds a folder for each checkpoint."""
    if (folder / "eval.toml").exists():
        return [read_eval(folder)]
    inner = sorted(path.parent for path in folder.glob("*/eval.toml"))
    if not inner:
        raise DataError(f"{folder} holds no evaluation; give the folder that `simplerl eval RUN --checkpoints` wrote")
    return [read_eval(path) for path in inner]


def _owner(one: EvalData, runs: Sequence[RunData]) -> RunData:
    model, _, _ = str(one.settings.get("model", "")).rpartition("@")
    if one.step is not None:
        for run in runs:
            if run.path == Path(model).resolve() or run.name == Path(model).name:
                return run
    raise DataError(
        f"{one.path} is of {one.settings.get('model', 'an unknown model')}, no checkpoint of "
        f"{' or '.join(run.name for run in runs)}; give the run it belongs to"
    )


def _extended(run: RunData, evaluations: Sequence[EvalData]) -> RunData:
    known = {(row["step"], row["set"], float(row["temperature"])) for row in run.evals}
    rows, files = [], []
    for row, path in (pair for one in evaluations for pair in _parts(one)):
        if (row["step"], row["set"], row["temperature"]) not in known:
            rows.append(row)
            files.append((row["step"], path))
    ordered = sorted([*run.evals, *rows], key=lambda row: row["step"])
    return replace(run, evals=tuple(ordered), added=(*run.added, *files)) if rows else run


def _parts(one: EvalData) -> Iterator[tuple[dict[str, Any], Path]]:
    """A row like those of `evals.jsonl`, and the responses, of each finished benchmark."""
    same = same_answer(one.verifier)
    for name, files in one.files.items():
        if files[0].suffix == ".parquet":
            temperature = float(one.decoding.get(name, {}).get("temperature", 0.0))
            yield _row(one.step or 0, name, temperature, score(one.responses(name), same)), files[0]


def _row(step: int, name: str, temperature: float, scores: Scores) -> dict[str, Any]:
    shares: Mapping[str, Any] = scores.shares
    return {
        "step": step,
        "set": name,
        "temperature": temperature,
        "n": scores.problems,
        "accuracy": scores.accuracy.value,
        "accuracy_low": scores.accuracy.low,
        "accuracy_high": scores.accuracy.high,
        "length": scores.tokens["all"],
        "code": shares["code"],
        "reflection": shares["reflection"],
        "unboxed": 1 - shares["box"],
        "clip_ratio": shares["clip_ratio"],
    }
