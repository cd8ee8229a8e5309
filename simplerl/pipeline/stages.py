"""How each kind of stage is done. What they need is imported when they start: planning needs no torch."""

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
    """Does a stage, or goes on with it. One that a signal stopped returns without its product."""
    if task.stage.run == "eval":
        evaluate(task, notice)
    elif task.stage.run == "report":
        write_all(task)
    elif task.stage.run == "distill":
        distil(task, plain, notice)
    else:
        train(task, plain)


def train(task: Task, plain: bool | None) -> None:
    """Reinforcement learning and fine-tuning are one function; the recipe says which."""
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
    """The recipe of a stage that is gone on with, as it reads now.

    Its fingerprint says that nothing differs but names of places, since the pipeline's folder may have been moved, and
    what a distillation keeps, which it is left to see for itself.
    """
    folder = RecipeFolder(task.folder)
    stored = folder.stored_recipe()
    if stored is not None:
        assert task.recipe is not None
        kept = {key: stored[key] for key in REJUDGED if key in stored}
        folder.write_recipe(recipe_table(task.recipe) | kept)


def evaluate(task: Task, notice: Notice) -> None:
    """Answers the suite. The model is called by its stage, so that its plan is the same wherever the folder is."""
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
