"""`simplerl compare`: evaluations, training runs and published rows side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simplerl.cli.console import say, say_json, say_note
from simplerl.errors import ConfigError

if TYPE_CHECKING:
    from simplerl.report.comparison import Comparison, Contender

PAPER = "paper:"
Format = Literal["table", "markdown", "paper", "csv", "json"]


def compare(
    things: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Eval folders, runs (RUN: its last evaluation, RUN@STEP: another) or paper:NAME, a published row. "
            "A+B+C is one thing: the same model under other seeds, pooled problem by problem. LABEL=A calls it LABEL.",
        ),
    ],
    form: Annotated[
        Format, typer.Option("--format", help="How to print it; paper: Markdown, a row per model.")
    ] = "table",
) -> None:
    """Accuracies with 95 % intervals, and what the others differ by from the first: paired where they answered the
    same problems, with the smallest difference that a benchmark can show."""
    from simplerl.report import compare_output
    from simplerl.report.caveats import caveats

    comparison = compared(things)
    notes = caveats(comparison)
    if form == "json":
        say_json(compare_output.as_dict(comparison, notes))
    elif form == "csv":
        say(compare_output.as_csv(comparison))
        for note in notes:
            say_note(note)
    elif form == "table":
        say(compare_output.as_text(comparison, notes))
    else:
        say(compare_output.as_markdown(comparison, notes, by_model=form == "paper"))


def compared(things: list[str]) -> Comparison:
    """Resolve the names on the command line; the first is the reference. Raises `ConfigError`, `DataError`."""
    from simplerl.report.comparison import compare as between

    if len(things) < 2:
        raise ConfigError("name two things to compare at least; see `simplerl compare --help`")
    given = [named(thing) for thing in things]
    short = labels([thing for _, thing in given])
    return between([contender(thing, name or label) for (name, thing), label in zip(given, short, strict=True)])


def contender(thing: str, label: str) -> Contender:
    """Resolve a name on the command line. Raises `DataError`."""
    from simplerl.report.comparison import from_eval, from_published, pooled
    from simplerl.report.eval_data import read_evaluation
    from simplerl.report.published import published

    if thing.startswith(PAPER):
        return from_published(published(thing.removeprefix(PAPER)), label)
    parts = parts_of(thing)
    if len(parts) == 1:
        return from_eval(read_evaluation(thing), label)
    return pooled([from_eval(read_evaluation(part), part) for part in parts], label)


def named(thing: str) -> tuple[str, str]:
    """`LABEL=THING` as its parts; no label where there is none, or a folder has that name."""
    label, equals, rest = thing.partition("=")
    return (label, rest) if equals and not Path(thing).exists() else ("", thing)


def parts_of(thing: str) -> list[str]:
    """`A+B+C` as its parts, unless there is a folder of that name."""
    return [thing] if Path(thing).exists() or thing.startswith(PAPER) else thing.split("+")


def labels(things: list[str]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    firsts = [parts_of(thing)[0] for thing in things]
    parts = [(thing,) if thing.startswith(PAPER) else Path(thing).parts or (thing,) for thing in firsts]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        short = ["/".join(each[-count:]) for each in parts]
        if len(set(short)) == len(set(parts)):
            return short
    return things
