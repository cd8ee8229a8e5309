"""How each kind of stage runs. Imports are inside the functions: planning needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simplerl.config import EvalStage
from simplerl.pipeline.plan import REJUDGED, Task, places
from simplerl.pipeline.products import filled
from simplerl.pipeline.report import write_all
from simplerl.storage.folder import RecipeFolder, recipe_table

Notice = Callable[[str], None]


def do(task: Task, *, plain: bool | None, notice: Notice) -> None:
    """Run or resume a stage. Returns without its product if a signal stopped it."""
    if task.stage.run == "eval":
        evaluate(task, notice)
    elif task.stage.run == "report":
        write_all(task)
    elif task.stage.run == "distill":
        distil(task, plain, notice)
    else:
        train(task, plain)


def train(task: Task, plain: bool | None) -> None:
    """Run reinforcement learning or fine-tuning, as the recipe says."""
    from simplerl.train.run import train as start

    restate(task)
    recipe: Any = task.recipe
    start(recipe, task.folder, plain=plain)


def distil(task: Task, plain: bool | None, notice: Notice) -> None:
    from simplerl.distill.run import distill

    restate(task)
    recipe: Any = task.recipe
    distill(recipe, task.folder, notice=notice, plain=plain)


def restate(task: Task) -> None:
    """The stored recipe of a stage to resume, as it reads today.

    The fingerprint guarantees that only two things differ: paths, if the pipeline's folder was moved, and a
    distillation's filter, which the distillation handles itself.
    """
    folder = RecipeFolder(task.folder)
    stored = folder.stored_recipe()
    if stored is not None:
        assert task.recipe is not None
        kept = {key: stored[key] for key in REJUDGED if key in stored}
        folder.write_recipe(recipe_table(task.recipe) | kept)


def evaluate(task: Task, notice: Notice) -> None:
    """Run the suite. The model is named after its stage, so that the plan does not depend on the folder's place."""
    from simplerl.evaluation.models import models_under_test
    from simplerl.evaluation.opening import opened
    from simplerl.evaluation.planning import Asked, make_plan

    stage = task.stage
    assert isinstance(stage, EvalStage)
    [found] = models_under_test(filled(stage.model, places(task.takes)), None)
    model = replace(found, name=filled(stage.model, {each.name: each.name for each in task.takes}))
    plan = make_plan(model, stage.suite, Asked(seed=task.seed, trained=stage.trained))
    with opened(model, plan, task.folder, use_cache=True, notice=notice) as session:
        session.run()
