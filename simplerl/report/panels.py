"""Panels of a report as data: their lines, texts and axes. `drawing` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from simplerl.report.run_data import RunData, Series, experiments, group_name, mean_of

Pick = Callable[[RunData], Series]


@dataclass(frozen=True)
class Line:
    """One quantity of a panel. `low` and `high` bound it; a thin line is background to another.

    `right` puts it on the panel's second axis.
    """

    label: str
    pick: Pick
    accent: int = 0
    low: Pick | None = None
    high: Pick | None = None
    thin: bool = False
    dots: bool = False
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes. `kind` is the y axis ("free" need not show zero); `stacked` fills between lines."""

    title: str
    subtitle: str
    lines: tuple[Line, ...]
    kind: Literal["number", "free", "share", "log"] = "number"
    stacked: bool = False


@dataclass(frozen=True)
class FigureSpec:
    """A figure: its file name, its heading, its source, and its panels (inches)."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2
    panel_size: tuple[float, float] = (5.4, 3.2)


def metric(label: str, key: str, accent: int = 0, *, thin: bool = False) -> Line:
    """A line of `metrics.jsonl`."""
    return Line(label, lambda run: run.metric(key), accent, thin=thin)


def evaluated(
    label: str,
    key: str,
    accent: int = 0,
    temperature: float | None = None,
    name: str | None = None,
    *,
    band: bool = False,
    right: bool = False,
) -> Line:
    """A line of `evals.jsonl`: each run's main set at its main temperature unless others are given."""

    def picker(column: str) -> Pick:
        return lambda run: run.evaluation(column, temperature, name)

    bounds = (picker(f"{key}_low"), picker(f"{key}_high")) if band else (None, None)
    return Line(label, picker(key), accent, *bounds, dots=True, right=right)


def validated(label: str, key: str, accent: int = 0) -> Line:
    """A line of `validation.jsonl`."""
    return Line(label, lambda run: run.validated(key), accent, dots=True)


class HeldOut(NamedTuple):
    """Panels of held-out responses, alike for every run; a run that did not evaluate a quantity is left out of it.

    `heats` are the temperatures at which any run evaluated the set, ascending; `heat` is the highest that all share, at
    which lengths and styles can be compared.
    """

    set: str
    problems: int
    heats: tuple[float, ...]
    heat: float

    def line(self, label: str, key: str, accent: int = 0) -> Line:
        return evaluated(label, key, accent, self.heat, self.set)


def held_out(runs: Sequence[RunData]) -> HeldOut | None:
    """The main set of the first run that has one. None: nothing was evaluated."""
    lead = next((run for run in runs if run.main_set is not None), None)
    if lead is None or lead.main_set is None or lead.main_temperature is None:
        return None
    heats = [{key.temperature for key in run.keys if key.set == lead.main_set} for run in runs]
    heats = [each for each in heats if each]
    heat = max(set.intersection(*heats), default=lead.main_temperature)
    return HeldOut(lead.main_set, lead.eval_rows()[0]["n"], tuple(sorted(set.union(*heats))), heat)


def filled(panels: Sequence[Panel], runs: Sequence[RunData]) -> tuple[Panel, ...]:
    """Panels that have something to show: a quantity that was not recorded leaves no empty axes."""
    return tuple(panel for panel in panels if any(line.pick(run).steps.size for line in panel.lines for run in runs))


def overlaid(runs: Sequence[RunData]) -> str:
    """A note on several runs in one panel; empty for a single run."""
    groups = experiments(runs)
    words = []
    if len(groups) > 1:
        words.append("One dash pattern per recipe.")
    if len(runs) > len(groups):
        words.append("Runs that differ in their seed alone are their mean; bands go from the lowest to the highest.")
    if len({run.kind for run in runs}) > 1:
        words.append("A step is a batch of rollouts in reinforcement learning, and one update in fine-tuning.")
    return " ".join(words)


def describe(panel: Panel, runs: Sequence[RunData]) -> str:
    """The panel as text: each line's first and last value, of each recipe."""
    groups = experiments(runs)
    found = [(group_name(group), moves) for group in groups if (moves := _moves(panel, group))]
    words = "; ".join(f"{name}: {moves}" if len(groups) > 1 else moves for name, moves in found)
    return f"{panel.title} ({panel.subtitle}): {words or 'no step in common'}."


def _moves(panel: Panel, runs: Sequence[RunData]) -> str:
    moves = []
    for line in panel.lines:
        values = mean_of([line.pick(run) for run in runs]).values
        if values.size and not line.thin:
            show = "{:.0%}".format if panel.kind == "share" and not line.right else "{:.3g}".format
            moves.append(f"{line.label} from {show(values[0])} to {show(values[-1])}")
    return ", ".join(moves)
