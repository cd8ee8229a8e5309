"""`simplerl report`: a page and pictures of one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simplerl.cli.compare import compared
from simplerl.cli.console import say


def report(
    run: Annotated[list[Path], typer.Argument(help="Run folders; runs of one recipe are shown with their mean.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (default: RUN/report.html, or report.html for several runs).")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also write each figure as PNG and SVG into this folder.")] = None,
    evals: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `simplerl eval RUN --checkpoints ...`, shown with the run's own; repeatable."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="A model for a table side by side, named as for `simplerl compare`; repeatable."),
    ] = None,
) -> None:
    """Write a self-contained HTML page that shows how a run learned, also while it is still running."""
    from simplerl.report.checkpoint_evals import with_evaluations
    from simplerl.report.report import write_figures, write_report
    from simplerl.report.run_data import experiments, read_run
    from simplerl.report.summary import summarise

    runs = with_evaluations([read_run(folder) for folder in run], evals or [])
    path = out or (run[0] if len(run) == 1 else Path()) / "report.html"
    page = write_report(runs, path, compared(compare) if compare else None)
    for group in experiments(runs):
        say("\n".join(summarise(group)))
    say(f"report: {page}")
    for path in write_figures(runs, png) if png else []:
        say(f"figure: {path}")
