"""Evaluations, readable while they are being written: the folder of `simplerl eval`, or a training run's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simplerl.errors import DataError
from simplerl.formatting import did_you_mean
from simplerl.report.published import published_rows, suite_average
from simplerl.stats.scores import COLUMNS, sorted_responses
from simplerl.storage.folder import RecipeFolder
from simplerl.storage.jsonl import read_lines
from simplerl.storage.records import RunFolder
from simplerl.verifiers.base import DEFAULT_VERIFIER

Row = Mapping[str, Any]
SAMPLING = ("temperature", "top_p", "max_tokens")


@dataclass(frozen=True)
class EvalData:
    """One evaluation of one model. Responses are read on demand."""

    path: Path
    kind: Literal["eval", "run"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`eval.toml`, or a run's recipe."""

    environments: tuple[Row, ...] = ()
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Files of responses by benchmark: Parquet, or JSON lines of an unfinished benchmark."""

    decoding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By benchmark: template, engine, temperature, top_p and max_tokens, as far as they are known."""

    average: tuple[str, ...] = ()
    """Benchmarks in the suite's average."""

    step: int | None = None
    finished: bool = True

    @property
    def name(self) -> str:
        return self.path.name if self.step is None else f"{self.path.name}@{self.step}"

    @property
    def verifier(self) -> str:
        """Name of the verifier that judged the responses: `eval.toml` has it as text, a recipe as a table."""
        named = self.settings.get("verifier", DEFAULT_VERIFIER)
        return named if isinstance(named, str) else named.get("name", DEFAULT_VERIFIER)

    def responses(self, benchmark: str, columns: Sequence[str] = COLUMNS) -> list[Row]:
        """Responses so far, sorted by problem and sample."""
        return sorted_responses(row for path in self.files.get(benchmark, ()) for row in _read(path, columns))


def read_evaluation(name: str | Path) -> EvalData:
    """An eval folder, `RUN` (its last evaluation) or `RUN@STEP`. Raises `DataError` for anything else."""
    path = Path(name)
    if path.exists():
        return read_run_evaluation(path) if RunFolder(path).exists else read_eval(path)
    folder, at, step = str(name).rpartition("@")
    if at and step.isdigit() and RunFolder(folder).exists:
        return read_run_evaluation(Path(folder), int(step))
    raise DataError(
        f"{name} is not a folder{_near(str(name))} Give an eval folder of `simplerl eval`, RUN or RUN@STEP of a "
        "training run, or paper:NAME"
    )


def _near(name: str) -> str:
    """Neighbouring folders and published rows with a similar name."""
    parent = Path(name).parent
    beside = [str(parent / path.name) for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    known = {**{path: path for path in beside}, **{row: f"paper:{row}" for row in published_rows()}}
    return did_you_mean(name.partition("@")[0], known, most=3, cutoff=0.7, show=known.__getitem__)


# --- eval folders -----------------------------------------------------------------------------------------------------


def read_eval(path: Path) -> EvalData:
    """The folder of an evaluation. Raises `DataError` if it is not one, or has no responses yet."""
    stored, folder = RecipeFolder(path, "eval.toml"), path / "responses"
    settings = stored.stored_recipe()
    if settings is None and not folder.is_dir():
        raise DataError(f"{path} is neither an eval folder (no eval.toml) nor a training run (no recipe.toml)")
    settings = settings or {}
    files = _response_files(folder, [part["name"] for part in _parts(settings)])
    if not files:
        raise DataError(f"{path} has no responses yet; try again when the first are there")
    return EvalData(
        path=path.resolve(),
        kind="eval",
        settings=settings,
        environments=tuple(stored.read_environments()),
        files=files,
        decoding={part["name"]: _known(settings | part) for part in _parts(settings)},
        average=tuple(settings.get("average") or suite_average(settings.get("suite"))),
        step=settings.get("step"),
        finished=(path / "results.json").exists(),
    )


def _parts(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per benchmark: those in `parts`, or `benchmarks` that share one `sampling`."""
    shared = settings.get("sampling", {})
    return settings.get("parts") or [{"name": name, **shared} for name in settings.get("benchmarks", ())]


def _known(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part[key] for key in ("template", "engine", *SAMPLING) if key in part}


def _response_files(folder: Path, planned: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Files by benchmark, in the plan's order: NAME/*.parquet, and NAME.jsonl of an unfinished one."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*.parquet")) + sorted(folder.glob("*.jsonl")):
        if not path.name.startswith("."):
            found.setdefault(path.parent.name if path.suffix == ".parquet" else path.stem, []).append(path)
    order = {name: number for number, name in enumerate(planned)}
    return {name: tuple(found[name]) for name in sorted(found, key=lambda name: order.get(name, len(order)))}


# --- runs -------------------------------------------------------------------------------------------------------------


def read_run_evaluation(path: Path, step: int | None = None) -> EvalData:
    """Responses of a training run at a step, or the last ones. Raises `DataError` with the steps that exist.

    A set evaluated at several temperatures is a benchmark for each; the lowest has the set's own name.
    """
    folder = RunFolder(path)
    steps = sorted({row["step"] for row in folder.read_evals()})
    if not steps:
        raise DataError(f"{path} has no finished evaluation yet (eval.every in its recipe says when there is one)")
    if step is not None and step not in steps:
        raise DataError(f"{path} was not evaluated at step {step}; at {', '.join(map(str, steps))} it was")
    chosen = steps[-1] if step is None else step
    recipe, files = folder.read_recipe(), _run_files(folder, chosen)
    if not files:
        raise DataError(f"{path} has no responses of step {chosen}: evals/ holds no such file")
    return EvalData(
        path=folder.path.resolve(),
        kind="run",
        settings=recipe,
        environments=tuple(folder.read_environments()),
        files={name: (file,) for name, (_, file) in files.items()},
        decoding={name: _run_decoding(recipe, temperature) for name, (temperature, _) in files.items()},
        step=chosen,
    )


def _run_files(folder: RunFolder, step: int) -> dict[str, tuple[float, Path]]:
    """Temperature and file of each benchmark of a step, in the order of `evals.jsonl`."""
    rows = [row for row in folder.read_evals() if row["step"] == step]
    keys = list(dict.fromkeys((row["set"], float(row["temperature"])) for row in rows))
    files = {_set_and_temperature(path): path for number, path in folder.eval_files() if number == step}
    lowest = {name: min(heat for other, heat in keys if other == name) for name, _ in keys}
    return {
        name if heat == lowest[name] else f"{name} T={heat:g}": (heat, files[name, heat])
        for name, heat in keys
        if (name, heat) in files
    }


def _set_and_temperature(path: Path) -> tuple[str, float] | None:
    rows = _read(path, ("set", "temperature"))
    return (rows[0]["set"], float(rows[0]["temperature"])) if rows else None


def _run_decoding(recipe: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    engine = recipe.get("engine", "embedded")
    asked, train = recipe.get("eval", {}), recipe.get("train", {})
    tokens = asked.get("max_tokens") or recipe.get("rollout", {}).get("max_tokens") or train.get("max_response_tokens")
    known = {
        "template": asked.get("template") or recipe.get("data", {}).get("template"),
        "engine": engine.get("name") if isinstance(engine, Mapping) else engine,
        "temperature": temperature,
        "top_p": 1.0,
        "max_tokens": tokens,
    }
    return {key: value for key, value in known.items() if value is not None}


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a file; none if a resume removed it meanwhile. Missing columns are None."""
    if path.suffix == ".jsonl":
        return _read_journal(path, columns)
    try:
        rows = _read_parquet(path, columns)
    except FileNotFoundError:
        return []
    return [{column: row.get(column) for column in columns} for row in rows]


def _read_journal(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Responses so far; the complete benchmark if it was finished meanwhile and the journal is gone."""
    rows = [{column: row.get(column) for column in columns} for row in read_lines(path)]
    return rows or [row for whole in sorted(path.with_suffix("").glob("*.parquet")) for row in _read(whole, columns)]


def _read_parquet(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        there = parquet.read_schema(path).names
        return parquet.read_table(path, columns=[column for column in columns if column in there]).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is damaged: {error}") from error
