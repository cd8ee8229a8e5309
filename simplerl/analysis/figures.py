"""The figures of a report, described as data: which panels, which lines, in which words. `drawing` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from simplerl.analysis.run_data import GREEDY, RunData, Series, mean_of, same_experiment


@dataclass(frozen=True)
class Line:
    """One quantity of a panel. `low` and `high` bound it; a thin line is background to another."""

    label: str
    pick: Callable[[RunData], Series]
    accent: int = 0
    low: Callable[[RunData], Series] | None = None
    high: Callable[[RunData], Series] | None = None
    thin: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes. `kind` says what the y axis holds; `stacked` fills the areas between the lines."""

    title: str
    subtitle: str
    lines: tuple[Line, ...]
    kind: Literal["number", "share", "log"] = "number"
    stacked: bool = False


@dataclass(frozen=True)
class FigureSpec:
    """A figure: its file name, its heading, what it is measured on, and its panels (inches)."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2
    panel_size: tuple[float, float] = (5.4, 3.2)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def metric(label: str, key: str, accent: int = 0, *, thin: bool = False) -> Line:
    """A line of `metrics.jsonl`."""
    return Line(label, lambda run: run.metric(key), accent, thin=thin)


def held_out(label: str, key: str, accent: int = 0, temperature: float | None = None, *, band: bool = False) -> Line:
    """A line of `evals.jsonl` on the main held-out set, at the main temperature unless another is given."""

    def picker(name: str) -> Callable[[RunData], Series]:
        return lambda run: run.evaluation(name, temperature)

    bounds = (picker(f"{key}_low"), picker(f"{key}_high")) if band else (None, None)
    return Line(label, picker(key), accent, *bounds, dots=True)


def dynamics_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Accuracy, reward, length and style against the step: held-out where it was evaluated, else while training."""
    run = runs[0]
    panels = (_accuracy_panel(run), _reward_panel(), _length_panel(run), _style_panel(run))
    caption = "Measured on training responses."
    if run.evals:
        caption = f"Measured on {run.eval_rows()[0]['n']:,} held-out problems of {run.main_set}."
        caption += " Bands are 95 % Wilson intervals." if len(runs) == 1 else _overlaid(runs)
    return FigureSpec("dynamics", "How it learned", caption, _filled(panels, runs))


def _overlaid(runs: Sequence[RunData]) -> str:
    if not same_experiment(runs):
        return " One dash pattern per run."
    return f" Thin lines are the {len(runs)} runs, bold ones and areas their mean."


def _filled(panels: Sequence[Panel], runs: Sequence[RunData]) -> tuple[Panel, ...]:
    """The panels that have something to show: what a run does not record leaves no empty axes."""
    return tuple(panel for panel in panels if any(line.pick(run).steps.size for line in panel.lines for run in runs))


def _accuracy_panel(run: RunData) -> Panel:
    if not run.evals:
        return Panel("Accuracy", "share of training responses", (metric("training", "reward/accuracy"),), "share")
    greedy, sampled = (
        held_out("greedy", "accuracy", 0, GREEDY, band=True),
        held_out("sampled", "accuracy", 1, band=True),
    )
    if run.main_temperature == GREEDY:
        return Panel("Accuracy", "held-out problems solved", (greedy,), "share")
    lines = (greedy, sampled) if run.has_greedy else (sampled,)
    return Panel("Accuracy", f"held-out problems solved; sampled at {_sampled(run)}", lines, "share")


def _reward_panel() -> Panel:
    return Panel("Reward", "mean over a step's training responses", (metric("reward", "reward/mean", 2),))


def _length_panel(run: RunData) -> Panel:
    lines = [metric("training", "length/mean", 3, thin=bool(run.evals))]
    if run.evals:
        lines.append(held_out("held-out", "length", 3))
    return Panel("Response length", "mean tokens", tuple(lines))


def _style_panel(run: RunData) -> Panel:
    names = {"code": ("program code", 1), "reflection": ("self-checks", 0), "unboxed": ("no boxed answer", 4)}
    line = held_out if run.evals else (lambda label, key, accent: metric(label, f"style/{key}", accent))
    where = f"share of held-out responses at {_sampled(run)}" if run.evals else "share of training responses"
    return Panel("Style", where, tuple(line(label, key, accent) for key, (label, accent) in names.items()), "share")


def _sampled(run: RunData) -> str:
    return f"temperature {run.main_temperature:g}"


DIAGNOSTICS = (
    Panel("Verdicts", "share of training responses", (
        metric("correct", "verdict/correct", 2), metric("wrong", "verdict/wrong", 1),
        metric("no answer", "verdict/no_answer", 3), metric("grader error", "verdict/error", 4)),
        "share", stacked=True),
    Panel("Length by verdict", "mean tokens", (
        metric("correct", "length/correct", 2), metric("not correct", "length/wrong", 1))),
    Panel("KL to the base model", "nats per token", (metric("KL", "kl/reference", 0),)),
    Panel("Entropy", "nats per token", (metric("entropy", "entropy", 3),)),
    Panel("Critic", "share of the returns' variance explained", (
        metric("explained", "value/explained_variance", 2),)),
    Panel("Gradient norms", "L2 norm", (
        metric("actor", "actor/grad_norm", 0), metric("critic", "critic/grad_norm", 1)), "log"),
    Panel("Cut and clipped", "share of responses; of tokens' ratios", (
        metric("responses cut", "length/clip_ratio", 1), metric("ratios clipped", "ratio/clip_share", 0)), "share"),
    Panel("Engine against learner", "difference of log-probabilities", (
        metric("mean", "mismatch/mean", 0), metric("max", "mismatch/max", 4)), "log"),
    # Grading runs during the rollout, so its seconds are within those.
    Panel("Time", "seconds per step, by phase", (
        metric("rollout", "time/rollout", 0), metric("score", "time/score", 3), metric("update", "time/update", 1)),
        stacked=True),
)  # fmt: skip


def diagnostics_figure(runs: Sequence[RunData]) -> FigureSpec:
    """What tells a healthy run from a sick one, step by step."""
    caption = "Every training step." + (_overlaid(runs) if len(runs) > 1 else "")
    return FigureSpec("diagnostics", "Training diagnostics", caption, _filled(DIAGNOSTICS, runs), 3, (3.9, 2.75))


def describe(spec: FigureSpec, runs: Sequence[RunData]) -> str:
    """The figure in words: each line's first and last value."""
    sentences = []
    for panel in spec.panels:
        show = "{:.0%}".format if panel.kind == "share" else "{:.3g}".format
        ends = [(line.label, mean_of([line.pick(run) for run in runs]).values) for line in panel.lines if not line.thin]
        moves = [f"{label} from {show(values[0])} to {show(values[-1])}" for label, values in ends if values.size]
        if moves:
            sentences.append(f"{panel.title} ({panel.subtitle}): {', '.join(moves)}.")
    return " ".join(sentences)
