"""Draws figures with matplotlib: light or dark, wide or narrow, one run or several."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from simplerl.analysis.figures import FigureSpec, Line, Panel
from simplerl.analysis.run_data import RunData, mean_of, same_experiment

Format = Literal["svg", "png"]
DASHES = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (5, 1.4, 1, 1.4)))


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; the accents differ in lightness too, for people who do not see red and green apart."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    accents: tuple[str, ...]


LIGHT = Theme(
    "light", "#ffffff", "#16202e", "#5d6b7e", "#e6eaf0", ("#2563c9", "#d4660b", "#0b8a75", "#8248c7", "#c2315b")
)
DARK = Theme(
    "dark", "#151b24", "#eef2f7", "#9aa7b8", "#2a3442", ("#6ea8ff", "#f5a04b", "#43c9ae", "#bd93f5", "#f47a9b")
)


@dataclass(frozen=True)
class Canvas:
    """What a figure is drawn on. None takes the figure's own columns and panel size (inches)."""

    theme: Theme = LIGHT
    columns: int | None = None
    panel: tuple[float, float] | None = None


def render(spec: FigureSpec, runs: Sequence[RunData], format: Format, canvas: Canvas | None = None) -> bytes:
    """The figure as an SVG or PNG file; the same runs give the same bytes."""
    canvas = canvas or Canvas()
    columns = min(canvas.columns or spec.columns, len(spec.panels))
    rows = -(-len(spec.panels) // columns)
    width, height = canvas.panel or spec.panel_size
    with matplotlib.rc_context(_settings(canvas.theme)):
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(width * columns, height * rows), layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for one, panel in zip(axes, spec.panels, strict=False):
            _draw_panel(one, panel, runs, canvas.theme)
        for unused in axes[len(spec.panels) :]:
            unused.set_axis_off()
        if not same_experiment(runs):
            _run_legend(figure, runs, canvas.theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format, dpi=160, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _settings(theme: Theme) -> dict[Any, Any]:
    return {
        "svg.hashsalt": "simplerl",
        "font.size": 9.5,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.9,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "ytick.left": False,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
    }


def _draw_panel(axes: Axes, panel: Panel, runs: Sequence[RunData], theme: Theme) -> None:
    axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", pad=23)
    axes.annotate(
        panel.subtitle, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=theme.muted
    )
    stacked = panel.stacked and same_experiment(runs)
    labels = (_draw_stack if stacked else _draw_lines)(axes, panel, runs, theme)
    _set_scale(axes, panel, runs)
    _end_labels(axes, labels)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Label:
    """Words at the right end of a line: at (x, y) in the data's units."""

    text: str
    x: float
    y: float
    colour: str


def _draw_lines(axes: Axes, panel: Panel, runs: Sequence[RunData], theme: Theme) -> list[_Label]:
    labels = []
    alike = same_experiment(runs)
    for line in panel.lines:
        colour = theme.accents[line.accent]
        (_draw_together if alike else _draw_each)(axes, line, runs, colour)
        # Runs of different recipes have no value in common; the name stands at the end of the longest.
        found = [line.pick(run) for run in runs]
        end = mean_of(found) if alike else max(found, key=lambda series: series.steps.max(initial=-1))
        if end.steps.size:
            text = f"{line.label} {_show(end.values[-1], panel)}" if alike else line.label
            labels.append(_Label(text, end.steps[-1], end.values[-1], colour))
    return labels


def _draw_each(axes: Axes, line: Line, runs: Sequence[RunData], colour: str) -> None:
    """Runs of different recipes: side by side, a dash pattern each."""
    for run, dashes in zip(runs, DASHES * len(runs), strict=False):
        axes.plot(*line.pick(run), color=colour, linestyle=dashes, linewidth=0.8 if line.thin else 1.6)


def _draw_together(axes: Axes, line: Line, runs: Sequence[RunData], colour: str) -> None:
    """Runs of one recipe: thin, with their mean; a single run with its band."""
    series = [line.pick(run) for run in runs]
    if len(runs) > 1 and not line.thin:
        for one in series:
            axes.plot(*one, color=colour, linewidth=0.9, alpha=0.4)
    mean = mean_of(series)
    axes.plot(*mean, color=colour, linewidth=1.0 if line.thin else 2.2, alpha=0.5 if line.thin else 1.0, clip_on=False)
    # A line of one point is invisible without its dot; a dense one is a string of beads with them.
    if (line.dots and mean.steps.size <= 40) or mean.steps.size == 1:
        axes.plot(*mean, "o", color=colour, markersize=3.4, clip_on=False)
    if len(runs) == 1 and line.low and line.high:
        low, high = line.low(runs[0]), line.high(runs[0])
        axes.fill_between(low.steps, low.values, high.values, color=colour, alpha=0.16, linewidth=0)


def _draw_stack(axes: Axes, panel: Panel, runs: Sequence[RunData], theme: Theme) -> list[_Label]:
    layers = [(line, mean_of([line.pick(run) for run in runs])) for line in panel.lines]
    layers = [(line, series) for line, series in layers if series.steps.size and series.values.any()]
    if not layers:
        return []
    steps = layers[0][1].steps
    heights = np.array([np.interp(steps, *series) for _, series in layers])
    colours = [theme.accents[line.accent] for line, _ in layers]
    axes.stackplot(steps, heights, colors=colours, alpha=0.78, linewidth=0)
    middles = heights[:, -1].cumsum() - heights[:, -1] / 2
    return [
        _Label(f"{line.label} {_show(series.values[-1], panel)}", steps[-1], middle, colour)
        for (line, series), middle, colour in zip(layers, middles, colours, strict=True)
    ]


def _show(value: float, panel: Panel) -> str:
    if panel.kind == "share":
        return f"{100 * value:.{0 if value >= 0.1 or value == 0 else 1}f} %"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- axes -------------------------------------------------------------------------------------------------------------


def _set_scale(axes: Axes, panel: Panel, runs: Sequence[RunData]) -> None:
    last = max(*(run.last_step for run in runs), 1)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: "step 0" if tick == 0 else f"{tick:g}"))
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.array([])])
    if panel.kind == "log" and (values > 0).any():
        axes.set_yscale("log")
        wide = values.max() > 50 * values[values > 0].min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif panel.kind == "share":
        top = axes.get_ylim()[1]
        axes.set_ylim(0, 1.0 if top > 0.6 else max(top, 0.005))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else 1, symbol=" %"))
    elif (values >= 0).all():
        axes.set_ylim(bottom=0)


def _end_labels(axes: Axes, labels: Sequence[_Label], gap: float = 0.085) -> None:
    """Puts each label beside the end of its line, moved up or down so that none covers another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(np.clip(to_axes.transform((label.x, label.y))[1], 0.0, 1.0)) for label in labels]
    order = np.argsort(wanted, kind="stable")
    for index, height in zip(order, _spread([wanted[index] for index in order], gap), strict=True):
        label = labels[index]
        axes.annotate(
            label.text, (1, height), (8, 0), xycoords="axes fraction", textcoords="offset points",
            color=label.colour, va="center", fontweight="bold", fontsize=9,
        )  # fmt: skip


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights at least `gap` apart, moved as little as an upward pass and a shift of crowded ones need."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + gap) if spread else height)
    for index in range(len(spread) - 1, -1, -1):
        ceiling = spread[index + 1] - gap if index + 1 < len(spread) else max(1.0, heights[-1])
        spread[index] = min(spread[index], ceiling)
    return spread


def _run_legend(figure: Figure, runs: Sequence[RunData], theme: Theme) -> None:
    handles = [
        Line2D([], [], color=theme.ink, linestyle=dashes, label=run.name)
        for run, dashes in zip(runs, DASHES * len(runs), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
