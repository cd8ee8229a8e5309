"""`simplerl sft`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simplerl.cli.console import say
from simplerl.cli.train import DryRun, Overrides, Plain, RunDir, check_names
from simplerl.formatting import table

if TYPE_CHECKING:
    from simplerl.config import SFTRecipe


def sft(
    recipe: Annotated[str, typer.Argument(help="A shipped SFT recipe (see `simplerl recipes`) or a .toml.")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    dry_run: DryRun = False,
    plain: Plain = False,
) -> None:
    """Fine-tune a model on given responses. The same command continues a run that was stopped or killed."""
    from simplerl.config import SFTRecipe, load_recipe, recipe_name

    loaded = load_recipe(recipe, overrides or (), kind=SFTRecipe)
    check_names(loaded)
    if dry_run:
        print_plan(loaded)
        return
    from simplerl.cli.report import report
    from simplerl.train.run import train

    report([train(loaded, run_dir or Path("runs") / recipe_name(recipe), plain=plain or None)])


def print_plan(recipe: SFTRecipe) -> None:
    """Settings as TOML, and what follows from them as comments."""
    import tomli_w

    from simplerl.storage.folder import recipe_table

    say(tomli_w.dumps(recipe_table(recipe)))
    say("# the run")
    say(table(plan_rows(recipe), indent="#   "))


def plan_rows(recipe: SFTRecipe) -> list[tuple[str, ...]]:
    from simplerl.cli.dry_run import is_local
    from simplerl.data.base import load_problems
    from simplerl.errors import DataError
    from simplerl.estimate.steps import sft_steps

    if not is_local(recipe.data.source):
        return [("examples", "unknown until the data set is here; see `simplerl data prepare`")]
    try:
        problems, _ = load_problems(recipe.data.source)
    except DataError as error:
        return [("examples", f"unknown: {error}")]
    levels = recipe.data.levels
    usable = [p for p in problems if (p.solution or "").strip() and (not levels or p.level in levels)]
    return [
        ("examples", f"{len(usable):,} of {len(problems):,} problems have a solution, before any is too long"),
        ("optimiser steps", f"{sft_steps(recipe, len(usable)):,} of {recipe.train.batch_size} sequences at most"),
    ]
