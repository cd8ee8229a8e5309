"""A run folder, readable while it is being written. Files only; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simplerl.errors import DataError
from simplerl.storage.records import RunFolder
from simplerl.verifiers.base import DEFAULT_VERIFIER

Row = Mapping[str, Any]
GREEDY = 0.0


class Series(NamedTuple):
    """One quantity against the training step: two float arrays of equal length, steps ascending."""

    steps: np.ndarray
    values: np.ndarray


EMPTY = Series(np.array([]), np.array([]))


class EvalKey(NamedTuple):
    """Set and temperature of an evaluation row."""

    set: str
    temperature: float


def sampling(temperature: float) -> str:
    """A temperature as text."""
    return "greedy" if temperature == GREEDY else f"temperature {temperature:g}"


@dataclass(frozen=True)
class RunData:
    """Contents of a run folder so far. Rows are in the order of their steps, one per step (and set, temperature).

    `validation` belongs to SFT: the loss on the problems held out from training. `environments` has one entry per
    session; a resumed run has several. `events` are losses and resumes, in order of time. `added` are response files,
    with their steps, of evaluations made later.
    """

    path: Path
    recipe_text: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environments: tuple[Row, ...] = ()
    metrics: tuple[Row, ...] = ()
    evals: tuple[Row, ...] = ()
    validation: tuple[Row, ...] = ()
    events: tuple[Row, ...] = ()
    added: tuple[tuple[int, Path], ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        """Kind of the recipe: "train" or "sft"."""
        return self.recipe.get("kind", "train")

    @property
    def verifier(self) -> str:
        """Name of the verifier that judged the responses."""
        named = self.recipe.get("verifier", DEFAULT_VERIFIER)
        return named if isinstance(named, str) else named.get("name", DEFAULT_VERIFIER)

    @cached_property
    def counts_boxes(self) -> bool:
        r"""False for a run of another domain than mathematics in which no response has a `\boxed{`."""
        shares = [row.get("unboxed", 1.0) for row in self.evals] + [
            row.get("style/unboxed", 1.0) for row in self.metrics
        ]
        return self.verifier == DEFAULT_VERIFIER or any(share < 1 for share in shares)

    @property
    def last_step(self) -> int:
        return int(max((row["step"] for row in (*self.metrics, *self.evals, *self.validation)), default=0))

    @cached_property
    def keys(self) -> tuple[EvalKey, ...]:
        """Sets and temperatures evaluated, in order of first appearance."""
        return tuple(dict.fromkeys(EvalKey(row["set"], float(row["temperature"])) for row in self.evals))

    @property
    def main_set(self) -> str | None:
        """The held-out set of the summary: the first one evaluated."""
        return self.keys[0].set if self.keys else None

    @property
    def main_temperature(self) -> float | None:
        """The temperature for length and styles: the highest one evaluated on the main set."""
        return max((key.temperature for key in self.keys if key.set == self.main_set), default=None)

    @property
    def has_greedy(self) -> bool:
        return any(key == (self.main_set, GREEDY) for key in self.keys)

    def eval_rows(self, temperature: float | None = None, name: str | None = None) -> list[Row]:
        """Evaluations of a set (default the main one) at a temperature (default the main one), by step."""
        key = (name or self.main_set, self.main_temperature if temperature is None else temperature)
        return [row for row in self.evals if (row["set"], float(row["temperature"])) == key]

    def metric(self, name: str) -> Series:
        """A quantity of `metrics.jsonl`; steps without it are left out."""
        return _series(self.metrics, name)

    def validated(self, name: str) -> Series:
        """A quantity of `validation.jsonl`."""
        return _series(self.validation, name)

    def evaluation(self, name: str, temperature: float | None = None, set_name: str | None = None) -> Series:
        """A quantity of `evals.jsonl` at a temperature, see `eval_rows`."""
        return _series(self.eval_rows(temperature, set_name), name)

    def sets(self, temperature: float) -> list[str]:
        """Sets evaluated at a temperature."""
        return [key.set for key in self.keys if key.temperature == temperature]

    def average(self, name: str, temperature: float, sets: Sequence[str] | None = None) -> Series:
        """Mean over sets (default all of a temperature) at steps that have all of them; each set counts once."""
        return mean_of([self.evaluation(name, temperature, each) for each in sets or self.sets(temperature)])


def read_run(path: Path) -> RunData:
    """Read a run folder. Raises `DataError` if it is none or has no finished step, `SimpleRLError` for damage."""
    folder = RunFolder(path)
    if not folder.exists:
        raise DataError(f"{path} is not a run folder: it has no recipe.toml; give one of `simplerl train` or `sft`")
    run = RunData(
        path=folder.path.resolve(),
        recipe_text=(folder.path / "recipe.toml").read_text(encoding="utf-8"),
        recipe=folder.read_recipe(),
        environments=tuple(folder.read_environments()),
        metrics=_latest(folder.read_metrics(), lambda row: row["step"]),
        evals=_latest(folder.read_evals(), lambda row: (row["step"], row["set"], row["temperature"])),
        validation=_latest(folder.read_validation(), lambda row: row["step"]),
        events=tuple(folder.read_events()),
    )
    if not (run.metrics or run.evals or run.validation):
        raise DataError(f"{path} has no finished step yet; try again when its first step is done")
    return run


def _latest(rows: Iterable[Row], key: Callable[[Row], Any]) -> tuple[Row, ...]:
    """One row per key, the last written (a resume writes a step again), in the order of steps."""
    by_key = {key(row): row for row in rows}
    return tuple(sorted(by_key.values(), key=lambda row: row["step"]))


def _series(rows: Sequence[Row], name: str) -> Series:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    pairs = [pair for pair in pairs if np.isfinite(pair[1])]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return Series(steps, values)


def mean_of(series: Sequence[Series]) -> Series:
    """Mean over runs at the steps that all of them have."""
    tables = [dict(zip(one.steps.tolist(), one.values.tolist(), strict=True)) for one in series]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    return Series(np.array(steps), np.array([np.mean([table[step] for table in tables]) for step in steps]))


def extremes_of(series: Sequence[Series]) -> tuple[Series, Series]:
    """Lowest and highest of the runs at the steps that all of them have."""
    steps = mean_of(series).steps
    rows = np.array([one.values[np.isin(one.steps, steps)] for one in series])
    return Series(steps, rows.min(axis=0)), Series(steps, rows.max(axis=0))


# settings that do not change what is learned
_ASIDE = ("seed", "description", "checkpoint", "track")


def same_experiment(runs: Sequence[RunData]) -> bool:
    """True if the runs differ in their seed alone, so that their mean is meaningful."""
    recipes = [{key: value for key, value in run.recipe.items() if key not in _ASIDE} for run in runs]
    return all(recipe == recipes[0] for recipe in recipes)


def experiments(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Runs grouped by recipe, in order of first appearance."""
    groups: list[list[RunData]] = []
    for run in runs:
        home = next((group for group in groups if same_experiment([group[0], run])), None)
        if home is None:
            groups.append(home := [])
        home.append(run)
    return groups


def group_name(group: Sequence[RunData]) -> str:
    """Name of a recipe's runs in a legend."""
    return group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more"
