"""`simplerl compare`: evaluations, training runs and published rows side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simplerl.cli.console import say, say_json
from simplerl.errors import ConfigError

if TYPE_CHECKING:
    from simplerl.analysis.comparison import Comparison, Contender

PAPER = "paper:"
Format = Literal["table", "markdown", "csv", "json"]


def compare(
    things: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Eval folders, runs (RUN: its last evaluation, RUN@STEP: another) or paper:NAME, a published row.",
        ),
    ],
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = "table",
) -> None:
    """Accuracies with 95 % intervals, and what the others differ by from the first: paired where they answered the
    same problems, with the smallest difference that a benchmark can show."""
    from simplerl.analysis import compare_output
    from simplerl.analysis.caveats import caveats

    comparison = compared(things)
    notes = caveats(comparison)
    if form == "json":
        say_json(compare_output.as_dict(comparison, notes))
    elif form == "csv":
        say(compare_output.as_csv(comparison))
        for note in notes:
            typer.echo(note, err=True)
    else:
        say((compare_output.as_markdown if form == "markdown" else compare_output.as_text)(comparison, notes))


def compared(things: list[str]) -> Comparison:
    """What the names on the command line stand for, the others against the first. Raises `ConfigError`, `DataError`."""
    from simplerl.analysis.comparison import compare as between

    if len(things) < 2:
        raise ConfigError("name two things to compare at least; see `simplerl compare --help`")
    return between([contender(thing, label) for thing, label in zip(things, labels(things), strict=True)])


def contender(thing: str, label: str) -> Contender:
    """What a name on the command line stands for. Raises `DataError`."""
    from simplerl.analysis.comparison import from_eval, from_published
    from simplerl.analysis.eval_data import read_evaluation
    from simplerl.analysis.published import published

    if thing.startswith(PAPER):
        return from_published(published(thing.removeprefix(PAPER)), label)
    return from_eval(read_evaluation(thing), label)


def labels(things: list[str]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [(thing,) if thing.startswith(PAPER) else Path(thing).parts or (thing,) for thing in things]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        short = ["/".join(each[-count:]) for each in parts]
        if len(set(short)) == len(set(parts)):
            return short
    return things
