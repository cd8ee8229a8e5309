"""`simplerl profile`: where one step's time goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from simplerl.cli.console import say, say_json
from simplerl.errors import ConfigError


def profile(
    source: Annotated[str, typer.Argument(help="A run folder, a shipped recipe's name, or a path ending in .toml.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set seed=1.")] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before the one that is traced.")] = 1,
    trace: Annotated[Path | None, typer.Option(help="Also write a trace of each phase for a trace viewer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Trace one training step: phases, operators, achieved FLOP/s, and the largest waste in words."""
    import os

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write between the lines
    from simplerl.config import Recipe, load_recipe
    from simplerl.profiling.profile import profile_step
    from simplerl.profiling.waste import text, wastes

    run = Path(source) if (Path(source) / "recipe.toml").is_file() else None
    if run is None and Path(source).is_dir():
        raise ConfigError(f"{source} is a folder without a recipe.toml; name a run folder or a recipe")
    recipe = load_recipe(str(run / "recipe.toml") if run else source, settings or [], kind=Recipe)
    found = profile_step(recipe, run, warm_up=warm_up, trace=trace)
    if as_json:
        say_json({**asdict(found), "seconds": found.seconds, "wastes": wastes(found)})
    else:
        say(text(found))
