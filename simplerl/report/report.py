"""A self-contained page about one run or several: it loads nothing from anywhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from simplerl.formatting import Grid, to_utf8
from simplerl.report import examples, responses
from simplerl.report.caveats import caveats
from simplerl.report.compare_output import paper_differences, paper_table
from simplerl.report.comparison import Comparison
from simplerl.report.drawing import Canvas, render, render_legend, render_panel
from simplerl.report.dynamics import dynamics_table, is_quickstart, length_dynamics
from simplerl.report.figures import figures
from simplerl.report.page import render_page
from simplerl.report.panels import FigureSpec, Panel, describe
from simplerl.report.payload import pack
from simplerl.report.run_data import Row, RunData, experiments, group_name, same_experiment
from simplerl.report.summary import headlines, summarise
from simplerl.report.themes import DARK, LIGHT, recoloured
from simplerl.report.verdicts import LABELS, audit_sample, method_rows
from simplerl.stats.styles import MORE_KEYWORDS, PUBLISHED_KEYWORDS
from simplerl.storage import atomic


class Picture(NamedTuple):
    """A panel as data URIs, light and dark, with its text."""

    title: str
    alt: str
    light: str
    dark: str


class Section(NamedTuple):
    """A figure of the page; `legend` explains the dash patterns if there are several runs."""

    spec: FigureSpec
    pictures: list[Picture]
    legend: Picture | None


class EvalChange(NamedTuple):
    """First and last evaluation of a set at a temperature."""

    run: RunData
    set: str
    temperature: float
    first: Row
    last: Row


class SideBySide(NamedTuple):
    """A comparison of models for the page: tables whose first row is the head, and warnings."""

    first: str
    table: Grid
    differences: Grid
    notes: list[str]


def write_report(runs: Sequence[RunData], path: Path, comparison: Comparison | None = None) -> Path:
    """Write the page atomically, with a comparison of models, or of the comparison alone if there are no runs."""
    # a file name may hold bytes that are not UTF-8; everything else is text already
    atomic.write_bytes(path, to_utf8(render_report(runs, comparison=comparison)))
    return path


def write_figures(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Write NAME.png, NAME.svg, NAME-dark.png and NAME-dark.svg of each figure."""
    written = []
    for spec in figures(runs):
        for suffix, theme in (("", LIGHT), ("-dark", DARK)):
            for kind in ("png", "svg"):
                path = folder / f"{spec.name}{suffix}.{kind}"
                atomic.write_bytes(path, render(spec, runs, kind, Canvas(theme)))
                written.append(path)
    return written


def render_report(runs: Sequence[RunData], live: str = "", comparison: Comparison | None = None) -> str:
    """The page as HTML; `live` is the version of one that follows its run."""
    models = side_by_side(comparison) if comparison else None
    if not runs:
        return render_page("models.html.j2", scripts=False, title="Models side by side", models=models)
    found = context(runs)
    return render_page("report.html.j2", live=live, scripts=bool(found["shown"]), models=models, **found)


def side_by_side(comparison: Comparison) -> SideBySide:
    """The tables of a comparison, and its notes."""
    first = comparison.contenders[0].label
    return SideBySide(first, paper_table(comparison), paper_differences(comparison), caveats(comparison))


def context(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything that the template shows of the runs."""
    return _about(runs) | _numbers(runs) | _texts(runs) | {"runs": runs, "sections": sections(runs)}


def _about(runs: Sequence[RunData]) -> dict[str, Any]:
    run, alike = runs[0], same_experiment(runs)
    return {
        "title": run.name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(each.name for each in runs)}",
        "description": run.recipe.get("description", "") if alike else "",
        "summaries": [("" if alike else group_name(group), summarise(group)) for group in experiments(runs)],
        "headlines": headlines(runs) if alike else [],
        "keywords": [*PUBLISHED_KEYWORDS, *MORE_KEYWORDS],
        "differences": recipe_differences(runs),
        "environment": flatten(run.environments[-1]) if run.environments else {},
    }


def _numbers(runs: Sequence[RunData]) -> dict[str, Any]:
    methods = method_rows(runs)
    return {
        "evals": [row for each in runs for row in eval_changes(each)],
        "boxes": any(each.counts_boxes for each in runs),
        "events": [(each, event) for each in runs for event in each.events],
        "checks": [(each, dynamics_table(each)) for each in runs if is_quickstart(each)],
        "lengths": [(each, found) for each in runs if (found := length_dynamics(each.eval_rows()))],
        "methods": methods,
        "labels": LABELS,
        "total": sum(sum(row.counts) for row in methods),
        "audit": audit_sample(runs),
    }


def _texts(runs: Sequence[RunData]) -> dict[str, Any]:
    past, shown = next(filter(None, map(examples.evolution, runs)), None), responses.select(runs)
    return {
        "evolution": past,
        "transitions": examples.transitions(past.pairs) if past else {},
        "examples": examples.choose(past.pairs) if past else [],
        "shown": len(shown),
        "rule": responses.RULE,
        "responses": Markup(pack(shown, [run.name for run in runs])),
    }


def sections(runs: Sequence[RunData]) -> list[Section]:
    """The figures for the page."""
    several = len(experiments(runs)) > 1
    legend = _picture("Runs", "Dash patterns of the runs", render_legend(runs)) if several else None
    return [Section(spec, [_panel_picture(panel, runs) for panel in spec.panels], legend) for spec in figures(runs)]


def _panel_picture(panel: Panel, runs: Sequence[RunData]) -> Picture:
    return _picture(panel.title, describe(panel, runs), render_panel(panel, runs))


def _picture(title: str, alt: str, svg: bytes) -> Picture:
    return Picture(title, alt, _data_uri(svg), _data_uri(recoloured(svg, LIGHT, DARK)))


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg).decode()


def eval_changes(run: RunData) -> list[EvalChange]:
    """First against last evaluation of everything evaluated twice."""
    changes = [(key, run.eval_rows(key.temperature, key.set)) for key in run.keys]
    return [EvalChange(run, *key, rows[0], rows[-1]) for key, rows in changes if len(rows) >= 2]


def recipe_differences(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Settings in which the runs differ, with each run's value."""
    flat = [flatten(run.recipe) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key, "not set") for one in flat] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as dotted keys, without empty values."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            flat[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
