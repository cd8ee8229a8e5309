"""The stages of a recipe, resolved and checked, each with a fingerprint of everything that decides its output.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplerl.config import (
    KINDS,
    DistillRecipe,
    EvalStage,
    PipelineRecipe,
    Recipe,
    RecipeStage,
    ReportStage,
    SFTRecipe,
    merge,
    read_recipe,
    validate_recipe,
)
from simplerl.errors import ConfigError, DataError
from simplerl.pipeline.products import check_named, filled, path_of, stages_named
from simplerl.storage import atomic
from simplerl.storage.folder import recipe_table
from simplerl.storage.records import MAY_CHANGE

StageRecipe = Recipe | SFTRecipe | DistillRecipe
Earlier = Mapping[str, "Task"]

SUPERSEDED = "superseded"
"""Folder for outputs of other settings."""

ASIDE = {key.rstrip(".") for key in MAY_CHANGE} | {"description"}
"""Parts of a recipe that cannot change any number."""

REJUDGED = ("filter", "verifier")
"""Parts of a distillation's recipe that change the verdicts on existing responses, but not the responses."""


@dataclass(frozen=True)
class Task:
    """A stage, ready to run."""

    name: str
    stage: RecipeStage | EvalStage | ReportStage
    folder: Path
    seed: int
    takes: tuple[Task, ...]
    """Stages whose products it reads."""

    fingerprint: str
    """Digest of everything that decides its output."""

    lasting: str
    """Digest of what a resumed folder must share. A distillation keeps its responses if only filter rules change."""

    recipe: StageRecipe | None = None

    @property
    def product(self) -> Path:
        """Its product, which exists once it is done."""
        return path_of(self.stage.run, self.folder)


@dataclass(frozen=True)
class Plan:
    """A pipeline in its folder."""

    recipe: PipelineRecipe
    root: Path
    tasks: tuple[Task, ...]


def make_plan(recipe: PipelineRecipe, root: Path) -> Plan:
    """Every stage in order. Raises `ConfigError` that names the stage, before anything is written."""
    tasks: dict[str, Task] = {}
    for name, stage in recipe.stages.items():
        with naming(name):
            tasks[name] = _task(name, stage, recipe.seed, root / name, tasks)
    return Plan(recipe, root, tuple(tasks.values()))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the stage's name before each line of an error in its settings."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise ConfigError("\n".join(f"stages.{name}: {line}" for line in str(error).splitlines())) from error


def _task(name: str, stage: RecipeStage | EvalStage | ReportStage, seed: int, folder: Path, earlier: Earlier) -> Task:
    if name == SUPERSEDED:
        raise ConfigError("that folder holds outputs of other settings; give the stage another name")
    if isinstance(stage, RecipeStage):
        return _recipe_task(name, stage, seed, folder, earlier)
    if isinstance(stage, EvalStage):
        return _eval_task(name, stage, seed, folder, earlier)
    return _report_task(name, stage, seed, folder, earlier)


# --- stages with a recipe ---------------------------------------------------------------------------------------------


def _recipe_task(name: str, stage: RecipeStage, seed: int, folder: Path, earlier: Earlier) -> Task:
    takes = _taken(stage.set, earlier)
    identity = essential(resolved(stage, seed, prints(takes)))
    lasting = {key: value for key, value in identity.items() if stage.run != "distill" or key not in REJUDGED}
    recipe = resolved(stage, seed, places(takes))
    own, outlasting = fingerprint(stage.run, identity), fingerprint(stage.run, lasting)
    return Task(name, stage, folder, seed, takes, own, outlasting, recipe)


def resolved(stage: RecipeStage, seed: int, stands_for: Mapping[str, str]) -> StageRecipe:
    """The recipe that a stage runs: the file's, then the pipeline's seed, then the stage's `set`."""
    table = read_recipe(stage.recipe)
    kind = table.get("kind", "train")
    if kind != stage.run:
        raise ConfigError(f"{stage.recipe} is a recipe for `simplerl {kind}`, but the stage says run={stage.run!r}")
    table = merge(table, {"seed": seed} | filled(stage.set, stands_for), "set")
    return validate_recipe(table, kind=KINDS[kind])


def essential(recipe: StageRecipe) -> dict[str, Any]:
    """Settings that decide what a stage makes."""
    if isinstance(recipe, DistillRecipe):
        from simplerl.distill.folder import lasting_table

        return lasting_table(recipe)
    return {key: value for key, value in recipe_table(recipe).items() if key not in ASIDE}


def places(tasks: Sequence[Task]) -> dict[str, str]:
    """Paths of the products, existing or not."""
    return {task.name: str(task.product.resolve()) for task in tasks}


def prints(tasks: Sequence[Task]) -> dict[str, str]:
    """Products by fingerprint instead of by folder, so that a moved pipeline keeps its fingerprints."""
    return {task.name: str(path_of(task.stage.run, Path(task.fingerprint))) for task in tasks}


def _taken(value: Any, earlier: Earlier) -> tuple[Task, ...]:
    check_named(value, {name: task.stage.run for name, task in earlier.items()})
    return tuple(earlier[name] for name in stages_named(value))


# --- evaluations and reports ------------------------------------------------------------------------------------------


def _eval_task(name: str, stage: EvalStage, seed: int, folder: Path, earlier: Earlier) -> Task:
    from simplerl.evaluation.suite import Decoding, check_template, load_suite, parts_of

    takes = _taken(stage.model, earlier)
    responses = [task.name for task in takes if task.stage.run == "distill"]
    if responses:
        raise ConfigError(f"model={stage.model!r}: {responses[0]} makes responses, not a model")
    suite = load_suite(stage.suite)
    check_template(suite.template)
    parts = parts_of(suite, (), Decoding(), trained=stage.trained)
    identity = {
        "model": filled(stage.model, prints(takes)),
        "trained": stage.trained,
        "template": suite.template,
        "parts": [part.model_dump(mode="json") for part in parts],
        "average": list(suite.average),
        "seed": seed,
    }
    own = fingerprint(stage.run, identity)
    return Task(name, stage, folder, seed, takes, own, own)


def _report_task(name: str, stage: ReportStage, seed: int, folder: Path, earlier: Earlier) -> Task:
    evals = tuple(task for task in earlier.values() if task.stage.run == "eval")
    trained = [task.name for task in earlier.values() if task.stage.run in ("train", "sft")]
    unknown = [run for run in stage.runs if run not in trained]
    if unknown:
        raise ConfigError(f"runs names {', '.join(unknown)}; training stages before it: {', '.join(trained) or 'none'}")
    if not evals:
        raise ConfigError("no eval stage before it to compare; `simplerl report` shows training runs alone")
    runs = tuple(earlier[run] for run in stage.runs)
    identity = {
        "evals": [[label(task), task.fingerprint] for task in evals],
        "runs": [[task.name, task.fingerprint] for task in runs],
    }
    own = fingerprint(stage.run, identity)
    return Task(name, stage, folder, seed, (*evals, *runs), own, own)


def label(task: Task) -> str:
    """Name of an evaluation in the table."""
    return (task.stage.label if isinstance(task.stage, EvalStage) else None) or task.name


# --- fingerprints -----------------------------------------------------------------------------------------------------


def fingerprint(run: str, identity: Mapping[str, Any]) -> str:
    """SHA-256 over the kind of a stage and everything that decides its output."""
    text = json.dumps({"run": run, **by_content(identity)}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def by_content(value: Any) -> Any:
    """Settings with the checksum of every file that they name, such as a plug-in or problems, for its name."""
    if isinstance(value, Mapping):
        return {key: by_content(one) for key, one in value.items()}
    if isinstance(value, list):
        return [by_content(one) for one in value]
    if isinstance(value, str) and "." in value and is_file(value):
        return atomic.sha256(Path(value))
    return value


def is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a text too long for a file name
        return False
