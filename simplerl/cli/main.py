"""The command line. Commands import what they need when they run, so that `simplerl --help` is fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import simplerl
from simplerl.cli import base, data
from simplerl.cli.compare import compare
from simplerl.cli.console import say, say_error
from simplerl.cli.distill import distill
from simplerl.cli.doctor import doctor
from simplerl.cli.drill import drill
from simplerl.cli.eval import evaluate
from simplerl.cli.grade import grade
from simplerl.cli.pipeline import pipeline
from simplerl.cli.plan import plan
from simplerl.cli.profile import profile
from simplerl.cli.report import report
from simplerl.cli.sample import sample
from simplerl.cli.sft import sft
from simplerl.cli.train import recipes, train
from simplerl.cli.watch import watch
from simplerl.errors import SimpleRLError

app = typer.Typer(
    name="simplerl",
    help="Teach language models to reason with reinforcement learning from verifiable rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    train,
    distill,
    sft,
    pipeline,
    recipes,
    plan,
    sample,
    grade,
    compare,
    report,
    watch,
    profile,
    drill,
    doctor,
):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(data.app, name="data")
app.add_typer(base.app, name="base")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"simplerl {simplerl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 2 for a mistake whose message says how to mend it."""
    try:
        app(arguments, standalone_mode=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except SimpleRLError as error:
        say_error(str(error))
        return 2
    return 0


def main() -> None:
    """The `simplerl` command."""
    sys.exit(run())
