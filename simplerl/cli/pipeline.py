"""`simplerl pipeline`: stages one after the other, each in its folder, gone on with wherever it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simplerl.cli.console import say
from simplerl.cli.train import Plain, check_names
from simplerl.formatting import table

if TYPE_CHECKING:
    from simplerl.pipeline.plan import Plan, Task


def pipeline(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `simplerl recipes`) or a path ending in .toml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one setting, e.g. --set seed=1 or --set stages.STAGE.set.train.steps=3. Repeatable.",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The pipeline's folder (default: runs/RECIPE); one that exists is continued.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages and what would be done; stop.")] = False,
    plain: Plain = False,
) -> None:
    """Run the stages of a recipe in order, skipping finished, unchanged ones. Run the command again to resume."""
    from simplerl.config import PipelineRecipe, load_recipe, recipe_name
    from simplerl.pipeline.plan import make_plan

    loaded = load_recipe(recipe, overrides or (), kind=PipelineRecipe)
    plan = make_plan(loaded, run_dir or Path("runs") / recipe_name(recipe))
    check_stages(plan)
    if dry_run:
        say(table([("stage", "run", "recipe or suite", "takes", "makes", "now"), *stage_rows(plan)]))
        return
    from simplerl.pipeline.run import run

    if not run(plan, plain=plain or None, say=say):
        raise typer.Exit(1)
    print_end(plan)


def check_stages(plan: Plan) -> None:
    """Templates and benchmarks of every training stage exist."""
    from simplerl.config import DistillRecipe
    from simplerl.pipeline.plan import naming

    for task in plan.tasks:
        if task.recipe is not None and not isinstance(task.recipe, DistillRecipe):
            with naming(task.name):
                check_names(task.recipe)


def stage_rows(plan: Plan) -> list[tuple[str, ...]]:
    """What each stage takes and makes, and what running the pipeline would do about it."""
    from simplerl.pipeline.folder import PipelineFolder

    folder = PipelineFolder(plan.root)
    will = {"new": "to do", "begun": "to resume", "done": "done", "changed": "changed, to run again"}
    return [(*_about(task), will[folder.standing(task)]) for task in plan.tasks]


def _about(task: Task) -> tuple[str, ...]:
    asked = getattr(task.stage, "recipe", None) or getattr(task.stage, "suite", "-")
    return task.name, task.stage.run, asked, ", ".join(each.name for each in task.takes) or "-", str(task.product)


def print_end(plan: Plan) -> None:
    """The table of all evaluations, and where everything is."""
    from simplerl.pipeline import report

    found = report.table(plan.tasks)
    say(f"\n{found}\n" if found else "")
    say(table([(task.name, str(task.product)) for task in plan.tasks]))
