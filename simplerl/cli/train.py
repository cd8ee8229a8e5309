"""`simplerl train` and `simplerl recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simplerl.cli.console import say, say_json
from simplerl.errors import ConfigError
from simplerl.formatting import table

if TYPE_CHECKING:
    from simplerl.config import TrainingRecipe

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, e.g. --set train.steps=3. Repeatable."),
]

RunDir = Annotated[
    Path | None, typer.Option(help="The run's folder (default: runs/RECIPE); one that exists is continued.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings and what follows from them; stop.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live view.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `simplerl recipes`) or a path ending in .toml.")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    plain: Plain = False,
) -> None:
    """Train a model by a recipe. The same command continues a run that was stopped or killed."""
    from simplerl.config import load_recipe, recipe_name

    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run; a run's numbers are in its folder, metrics.jsonl")
    loaded = load_recipe(recipe, overrides or ())
    check_names(loaded)
    if dry_run:
        from simplerl.cli.dry_run import print_plan

        print_plan(loaded, as_json=as_json)
        return
    from simplerl.cli.report import report
    from simplerl.train.run import train as start

    report([start(loaded, run_dir or Path("runs") / recipe_name(recipe), plain=plain or None)])


def check_names(recipe: TrainingRecipe) -> None:
    """Template and benchmarks exist: better said now than after a large model was loaded."""
    from simplerl.data.base import benchmark_module
    from simplerl.data.templates import NAMES, render

    for template in (recipe.data.template, recipe.eval.template or recipe.data.template):
        if template not in NAMES:
            render(template, "")
    for wanted in recipe.eval.sets:
        if wanted.path is None:
            benchmark_module(wanted.name)
        elif not Path(wanted.path).is_file():
            raise ConfigError(f"eval.sets: path={wanted.path} is not a file; looked in {Path.cwd()}")


def recipes(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the shipped recipes and the command that runs each."""
    from simplerl.config import read_recipe, shipped_recipes

    tables = {name: read_recipe(name) for name in shipped_recipes()}
    found = [(name, each.get("kind", "train"), str(each.get("description", ""))) for name, each in tables.items()]
    if as_json:
        say_json([dict(zip(("name", "kind", "description"), row, strict=True)) for row in found])
    else:
        say(table([(f"simplerl {kind} {name}", text) for name, kind, text in found]))
