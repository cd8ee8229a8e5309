"""One self-contained page about one run or several: it loads nothing from anywhere and runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

import simplerl
from simplerl import atomic
from simplerl.analysis import examples
from simplerl.analysis.drawing import DARK, LIGHT, Canvas, render
from simplerl.analysis.dynamics import dynamics_table, length_dynamics
from simplerl.analysis.figures import FigureSpec, describe, diagnostics_figure, dynamics_figure
from simplerl.analysis.run_data import Row, RunData, same_experiment
from simplerl.analysis.styles import MORE_KEYWORDS, PUBLISHED_KEYWORDS
from simplerl.analysis.summary import headlines, interval, percent, summarise

NARROW = Canvas(columns=1, panel=(4.7, 3.1))
QUICKSTART_SET = "arithmetic-test"


class Picture(NamedTuple):
    """A figure as data URIs: light and dark, for a wide window and for a phone."""

    spec: FigureSpec
    alt: str
    light: str
    dark: str
    narrow_light: str
    narrow_dark: str


class EvalChange(NamedTuple):
    """First and last evaluation of a set at a temperature."""

    run: RunData
    set: str
    temperature: float
    first: Row
    last: Row


def write_report(runs: Sequence[RunData], path: Path) -> Path:
    """Writes the page, whole or not at all."""
    # A name of a file may hold bytes that are no UTF-8; all else is text already.
    atomic.write_bytes(path, render_report(runs).encode("utf-8", "replace"))
    return path


def write_figures(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """NAME.png, NAME.svg, NAME-dark.png and NAME-dark.svg of each figure."""
    written = []
    for spec in figures(runs):
        for suffix, theme in (("", LIGHT), ("-dark", DARK)):
            for kind in ("png", "svg"):
                path = folder / f"{spec.name}{suffix}.{kind}"
                atomic.write_bytes(path, render(spec, runs, kind, Canvas(theme)))
                written.append(path)
    return written


def render_report(runs: Sequence[RunData]) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simplerl.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval}
    environment.globals["pieces"] = examples.pieces
    return environment.get_template("report.html.j2").render(context(runs))


def context(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything the template shows."""
    run = runs[0]
    alike = same_experiment(runs)
    past = examples.evolution(run)
    return {
        "version": simplerl.__version__,
        "runs": runs,
        "title": run.name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(each.name for each in runs)}",
        "description": run.recipe.get("description", "") if alike else "",
        "summaries": [("", summarise(runs))] if alike else [(each.name, summarise([each])) for each in runs],
        "headlines": headlines(runs) if alike else [],
        "pictures": [picture(spec, runs) for spec in figures(runs)],
        "evals": [row for each in runs for row in eval_changes(each)],
        "checks": [(each, dynamics_table(each)) for each in runs if each.main_set == QUICKSTART_SET],
        "lengths": [(each, found) for each in runs if (found := length_dynamics(each.eval_rows()))],
        "evolution": past,
        "transitions": examples.transitions(past.pairs) if past else {},
        "examples": examples.choose(past.pairs) if past else [],
        "keywords": [*PUBLISHED_KEYWORDS, *MORE_KEYWORDS],
        "differences": recipe_differences(runs),
        "environment": flatten(run.environments[-1]) if run.environments else {},
    }


def figures(runs: Sequence[RunData]) -> list[FigureSpec]:
    """The figures that have something to show."""
    return [spec for spec in (dynamics_figure(runs), diagnostics_figure(runs)) if spec.panels]


def picture(spec: FigureSpec, runs: Sequence[RunData]) -> Picture:
    """A figure in the four forms a page needs."""
    narrow = [Canvas(theme, NARROW.columns, NARROW.panel) for theme in (LIGHT, DARK)]
    uris = [_data_uri(render(spec, runs, "svg", canvas)) for canvas in (Canvas(LIGHT), Canvas(DARK), *narrow)]
    return Picture(spec, describe(spec, runs), *uris)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg).decode()


def eval_changes(run: RunData) -> list[EvalChange]:
    """First against last evaluation of everything that was evaluated twice."""
    changes = [(key, run.eval_rows(key.temperature, key.set)) for key in run.keys]
    return [EvalChange(run, *key, rows[0], rows[-1]) for key, rows in changes if len(rows) >= 2]


def recipe_differences(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Settings in which the runs differ, with each run's value."""
    flat = [flatten(run.recipe) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key, "not set") for one in flat] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted keys, without what is empty."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            flat[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
