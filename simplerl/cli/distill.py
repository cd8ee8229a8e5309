"""`simplerl distill`: long responses of a teacher, of which the right ones are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simplerl.cli.console import say, say_note
from simplerl.cli.train import Overrides
from simplerl.formatting import table

if TYPE_CHECKING:
    from simplerl.config import DistillRecipe


def distill(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `simplerl recipes`) or a path ending in .toml.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder (default: distill/RECIPE); one that exists is continued.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible service, such as http://127.0.0.1:8000/v1.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked; stop.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No progress bar.")] = False,
) -> None:
    """Collect long solutions from a teacher and keep the correct ones. Run the same command again to resume."""
    from simplerl.config import DistillRecipe, load_recipe, recipe_name

    service = ["teacher.name=openai", f"teacher.url={endpoint}"] if endpoint else []
    loaded = load_recipe(recipe, [*service, *(overrides or ())], kind=DistillRecipe)
    if dry_run:
        print_plan(loaded)
        return
    from simplerl.distill.run import distill as start

    print_results(start(loaded, out or Path("distill") / recipe_name(recipe), notice=say_note, plain=plain or None))


def print_plan(recipe: DistillRecipe) -> None:
    """How much the teacher would be asked."""
    from simplerl.distill.problems import choose_problems, questions
    from simplerl.verifiers.base import usable_problems

    chosen = choose_problems(recipe.data, recipe.seed, usable_problems(recipe.verifier.name, recipe.verifier.path))
    asked, sampling = len(questions(chosen.problems, recipe)), recipe.sampling
    for text in chosen.notices:
        say(text)
    say(f"{len(chosen.problems):,} problems x {sampling.samples_per_problem} samples = {asked:,} responses")
    say(f"{asked * sampling.max_tokens:,} tokens at most ({sampling.max_tokens:,} each)")


def print_results(kept: Path) -> None:
    """The table of yields, and the file."""
    import json

    from simplerl.distill.yields import grid

    say(table(grid(json.loads((kept.parent / "yields.json").read_text(encoding="utf-8")))))
    say(f"training data: {kept}")
