"""Figures with matplotlib: light or dark, wide or narrow, of one run or several."""

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

from simplerl.formatting import percent, significant
from simplerl.report.panels import FigureSpec, Line, Panel
from simplerl.report.run_data import RunData, experiments, extremes_of, group_name, mean_of
from simplerl.report.themes import LIGHT, Theme, settings

Format = Literal["svg", "png"]
Place = Literal["center left", "outside lower left"]
Groups = Sequence[Sequence[RunData]]
DASHES = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (5, 1.4, 1, 1.4)))
PANEL_SIZE = (4.8, 3.1)
"""Size of a single panel, in inches."""


@dataclass(frozen=True)
class Canvas:
    """Style of a figure. None: the figure's own columns and panel size (inches)."""

    theme: Theme = LIGHT
    columns: int | None = None
    panel: tuple[float, float] | None = None


def render(spec: FigureSpec, runs: Sequence[RunData], format: Format, canvas: Canvas | None = None) -> bytes:
    """The figure as an SVG or PNG file; equal runs give equal bytes."""
    canvas = canvas or Canvas()
    columns = min(canvas.columns or spec.columns, len(spec.panels))
    size = canvas.panel or spec.panel_size
    return _drawn(spec.panels, runs, format, canvas.theme, columns, size, legend=True)


def render_panel(panel: Panel, runs: Sequence[RunData]) -> bytes:
    """One panel as a light SVG file."""
    return _drawn([panel], runs, "svg", LIGHT, 1, PANEL_SIZE, legend=False)


def render_legend(runs: Sequence[RunData]) -> bytes:
    """The legend of dash patterns, as a light SVG file."""
    with matplotlib.rc_context(settings(LIGHT)):
        groups = experiments(runs)
        figure = Figure(figsize=(PANEL_SIZE[0], 0.2 + 0.2 * -(-len(groups) // 2)))
        _legend(figure, groups, LIGHT, "center left", columns=2)
        return _saved(figure, "svg")


def _drawn(
    panels: Sequence[Panel],
    runs: Sequence[RunData],
    format: Format,
    theme: Theme,
    columns: int,
    size: tuple[float, float],
    *,
    legend: bool,
) -> bytes:
    groups = experiments(runs)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(settings(theme)):
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for one, panel in zip(axes, panels, strict=False):
            _draw_panel(one, panel, groups, theme)
        for unused in axes[len(panels) :]:
            unused.set_axis_off()
        if legend and len(groups) > 1:
            _legend(figure, groups, theme, "outside lower left")
        return _saved(figure, format)


def _saved(figure: Figure, format: Format) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=160, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _legend(figure: Figure, groups: Groups, theme: Theme, place: Place, columns: int = 4) -> None:
    handles = [
        Line2D([], [], color=theme.ink, linestyle=dashes, label=group_name(group))
        for group, dashes in zip(groups, DASHES * len(groups), strict=False)
    ]
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False)


def _draw_panel(axes: Axes, panel: Panel, groups: Groups, theme: Theme) -> None:
    axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", pad=23)
    if any(line.right for line in panel.lines):
        _draw_twin(axes, panel, groups, theme)
        return
    _annotate(axes, panel.subtitle, 0.0, "left", theme.muted)
    stacked = panel.stacked and len(groups) == 1
    labels = _draw_stack(axes, panel, groups[0], theme) if stacked else _draw_lines(axes, panel, groups, theme)
    _set_steps(axes, panel, groups)
    _set_values(axes, panel.kind)
    _end_labels(axes, labels)


def _annotate(axes: Axes, text: str, x: float, side: str, colour: str, **more: Any) -> None:
    """Text above the axes, below the title."""
    axes.annotate(
        text, (x, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color=colour, ha=side, **more
    )


def _draw_twin(axes: Axes, panel: Panel, groups: Groups, theme: Theme) -> None:
    """Two quantities of different units: each axis has the colour and the name of its line."""
    right = axes.twinx()
    right.grid(False)
    right.spines["right"].set_visible(False)
    for line in panel.lines:
        colour, own = theme.accents[line.accent], right if line.right else axes
        _draw_line(own, line, groups, colour)
        own.tick_params(axis="y", colors=colour, left=False, right=False)
        x, side = (1.0, "right") if line.right else (0.0, "left")
        words = line.label if line.right else f"{line.label}, {panel.subtitle}"
        _annotate(axes, words, x, side, colour, fontweight="bold", fontsize=9)
    _set_steps(axes, panel, groups)
    _set_values(axes, panel.kind)
    right.yaxis.set_major_locator(MaxNLocator(5, integer=True))


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Label:
    """Text at the right end of a line: at (x, y) in the data's units."""

    text: str
    x: float
    y: float
    colour: str


def _draw_lines(axes: Axes, panel: Panel, groups: Groups, theme: Theme) -> list[_Label]:
    labels = []
    for line in panel.lines:
        colour = theme.accents[line.accent]
        _draw_line(axes, line, groups, colour)
        # runs of different recipes share no value; the name is placed at the end of the longest
        ends = [mean_of([line.pick(run) for run in group]) for group in groups]
        end = max(ends, key=lambda series: series.steps.max(initial=-1))
        if end.steps.size:
            text = f"{line.label} {_show(end.values[-1], panel)}" if len(groups) == 1 else line.label
            labels.append(_Label(text, end.steps[-1], end.values[-1], colour))
    return labels


def _draw_line(axes: Axes, line: Line, groups: Groups, colour: str) -> None:
    for group, dashes in zip(groups, DASHES * len(groups), strict=False):
        series = [line.pick(run) for run in group]
        mean = mean_of(series)
        style: dict[str, Any] = {"color": colour, "clip_on": False}
        width = 1.0 if line.thin else 2.2 if len(groups) == 1 else 1.6
        axes.plot(*mean, linestyle=dashes, linewidth=width, alpha=0.5 if line.thin else 1.0, **style)
        # a line of one point is invisible without its dot; on a dense one dots would hide the line
        if mean.steps.size == 1 or (line.dots and len(groups) == 1 and mean.steps.size <= 40):
            axes.plot(*mean, "o", markersize=3.4, **style)
        _draw_band(axes, line, group, colour, alone=len(groups) == 1)


def _draw_band(axes: Axes, line: Line, group: Sequence[RunData], colour: str, *, alone: bool) -> None:
    """From the lowest to the highest of several runs; a single run's own interval."""
    if line.thin or (len(group) == 1 and not (alone and line.low and line.high)):
        return
    if line.low and line.high and len(group) == 1:
        low, high = line.low(group[0]), line.high(group[0])
    else:
        low, high = extremes_of([line.pick(run) for run in group])
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
        return percent(value, 0 if value >= 0.1 or value == 0 else 1)
    return significant(value)


# --- axes -------------------------------------------------------------------------------------------------------------


def _set_steps(axes: Axes, panel: Panel, groups: Groups) -> None:
    """The range of steps of the runs in the panel: a step of SFT is short, and a run has many."""
    shown = [run for group in groups for run in group if any(line.pick(run).steps.size for line in panel.lines)]
    axes.set_xlim(0, max([run.last_step for run in shown], default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: "step 0" if tick == 0 else f"{tick:g}"))


def _set_values(axes: Axes, kind: str) -> None:
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.array([])])
    if kind == "log" and (values > 0).any():
        axes.set_yscale("log")
        wide = values.max() > 50 * values[values > 0].min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif kind == "share":
        top = axes.get_ylim()[1]
        axes.set_ylim(0, 1.0 if top > 0.6 else max(top, 0.005))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.1 else 1, symbol=" %"))
    elif kind == "number" and axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    if kind in ("number", "free"):
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _: object) -> str:
    return significant(value, 6, whole_from=1000)


def _end_labels(axes: Axes, labels: Sequence[_Label], gap: float = 0.085) -> None:
    """Put each label beside the end of its line, moved up or down so that none covers another."""
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
    """Ascending heights at least `gap` apart, moved as little as an upward pass and a shift of crowded ones allow."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + gap) if spread else height)
    for index in range(len(spread) - 1, -1, -1):
        ceiling = spread[index + 1] - gap if index + 1 < len(spread) else max(1.0, heights[-1])
        spread[index] = min(spread[index], ceiling)
    return spread
