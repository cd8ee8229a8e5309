"""The figures of a report: their panels and their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from simplerl.report.panels import (
    FigureSpec,
    HeldOut,
    Line,
    Panel,
    evaluated,
    filled,
    held_out,
    metric,
    overlaid,
    validated,
)
from simplerl.report.passes import pass_curves
from simplerl.report.run_data import EMPTY, GREEDY, EvalKey, RunData, Series, sampling

STYLES = {"code": ("program code", 1), "reflection": ("self-checks", 0), "unboxed": ("no boxed answer", 4)}


def figures(runs: Sequence[RunData]) -> list[FigureSpec]:
    """Figures that have something to show."""
    makers = (dynamics_figure, benchmarks_figure, passes_figure, responses_figure, optimisation_figure, cost_figure)
    return [spec for make in makers if (spec := make(runs)).panels]


# --- how it learned ---------------------------------------------------------------------------------------------------


def dynamics_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Accuracy, loss or reward, length, style against the step: held-out where it was evaluated, else in training."""
    held = held_out(runs)
    panels = (_accuracy_panel(held), _loss_panel(runs), _reward_panel(), _length_panel(held))
    panels = (*panels, _style_panel(held, _styles(runs)))
    return FigureSpec("dynamics", "How it learned", _captioned(_measured(runs, held), runs), filled(panels, runs))


def _measured(runs: Sequence[RunData], held: HeldOut | None) -> str:
    if held:
        bands = " Bands are 95 % Wilson intervals." if len(runs) == 1 else ""
        return f"Measured on {held.problems:,} held-out problems of {held.set}.{bands}"
    return "Measured on training responses." if any(run.kind != "sft" for run in runs) else "Measured while training."


def _captioned(caption: str, runs: Sequence[RunData]) -> str:
    return f"{caption} {overlaid(runs)}".strip()


def _accuracy_panel(held: HeldOut | None) -> Panel:
    if held is None:
        return Panel("Accuracy", "share of training responses", (metric("training", "reward/accuracy"),), "share")
    words, lines, hottest = "held-out problems solved", [], held.heats[-1]
    if GREEDY in held.heats:
        lines.append(evaluated("greedy", "accuracy", 0, GREEDY, held.set, band=True))
    if hottest != GREEDY:
        lines.append(evaluated("sampled", "accuracy", 1, hottest, held.set, band=True))
        words += f"; sampled at {sampling(hottest)}"
    return Panel("Accuracy", words, tuple(lines), "share")


def _loss_panel(runs: Sequence[RunData]) -> Panel:
    training = metric("training", "loss/sft", 2, thin=any(run.validation for run in runs))
    return Panel("Loss", "nats per response token", (training, validated("validation", "loss", 2)), "free")


def _reward_panel() -> Panel:
    return Panel("Reward", "mean over a step's training responses", (metric("reward", "reward/mean", 2),))


def _length_panel(held: HeldOut | None) -> Panel:
    training = metric("training", "length/mean", 3, thin=held is not None)
    words = f"mean tokens; held-out: {sampling(held.heat)}" if held else "mean tokens"
    return Panel("Response length", words, (training, *_held(held, "length", 3)))


def _styles(runs: Sequence[RunData]) -> dict[str, tuple[str, int]]:
    """Label and accent of the styles that the runs are about."""
    return {key: style for key, style in STYLES.items() if key != "unboxed" or any(run.counts_boxes for run in runs)}


def _style_panel(held: HeldOut | None, styles: Mapping[str, tuple[str, int]]) -> Panel:
    where = f"share of held-out responses, {sampling(held.heat)}" if held else "share of training responses"
    lines = (
        held.line(label, key, accent) if held else metric(label, f"style/{key}", accent)
        for key, (label, accent) in styles.items()
    )
    return Panel("Style", where, tuple(lines), "share")


def _held(held: HeldOut | None, key: str, accent: int) -> tuple[Line, ...]:
    return (held.line("held-out", key, accent),) if held else ()


# --- benchmarks -------------------------------------------------------------------------------------------------------


def benchmarks_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Accuracy and response length of every benchmark on twin axes, and of their average."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    heats = {heat: sets for heat in dict.fromkeys(key.temperature for key in keys) if (sets := _several(runs, heat))}
    panels = [_average_panel(heat, sets) for heat, sets in heats.items()] + [_benchmark_panel(key) for key in keys]
    caption = "Held-out problems: accuracy on the left axis, mean response tokens on the right one."
    if heats:
        caption += " In the average every set counts once, whatever its size."
    return FigureSpec("benchmarks", "Accuracy and length, set by set", _captioned(caption, runs), filled(panels, runs))


def _several(runs: Sequence[RunData], temperature: float) -> list[str]:
    """The sets of the first run with more than one: an average over others is none to compare with."""
    return next((sets for run in runs if len(sets := run.sets(temperature)) > 1), [])


def _average_panel(heat: float, sets: Sequence[str]) -> Panel:
    lines = (
        Line("accuracy", lambda run: run.average("accuracy", heat, sets), 0, dots=True),
        Line("tokens", lambda run: run.average("length", heat, sets), 3, dots=True, right=True),
    )
    return Panel("Average of all sets", sampling(heat), lines, "share")


def _benchmark_panel(key: EvalKey) -> Panel:
    accuracy = evaluated("accuracy", "accuracy", 0, key.temperature, key.set, band=True)
    tokens = evaluated("tokens", "length", 3, key.temperature, key.set, right=True)
    return Panel(key.set, sampling(key.temperature), (accuracy, tokens), "share")


# --- pass@k -----------------------------------------------------------------------------------------------------------


def passes_figure(runs: Sequence[RunData]) -> FigureSpec:
    """pass@k of every evaluation with several samples a problem, against the step."""
    curves = {run.path: pass_curves(run) for run in runs}
    keys = dict.fromkeys(key for found in curves.values() for key in found)
    caption = "Share of held-out problems of which at least one in k responses is right, estimated without bias."
    panels = tuple(_pass_panel(key, {path: found.get(key, {}) for path, found in curves.items()}) for key in keys)
    return FigureSpec("passes", "pass@k", _captioned(caption, runs), panels)


def _pass_panel(key: EvalKey, curves: Mapping[Path, Mapping[int, Series]]) -> Panel:
    sizes = sorted({k for found in curves.values() for k in found})
    lines = (
        Line(f"k = {k}", lambda run, k=k: curves[run.path].get(k, EMPTY), accent, dots=True)
        for accent, k in enumerate(sizes)
    )
    return Panel(key.set, sampling(key.temperature), tuple(lines), "share")


# --- responses --------------------------------------------------------------------------------------------------------

VERDICTS = Panel("Verdicts", "share of training responses", (
    metric("correct", "verdict/correct", 2), metric("wrong", "verdict/wrong", 1),
    metric("no answer", "verdict/no_answer", 3), metric("grader error", "verdict/error", 4)),
    "share", stacked=True)  # fmt: skip
LENGTHS = Panel("Length by verdict", "mean tokens of training responses", (
    metric("correct", "length/correct", 2), metric("not correct", "length/wrong", 1),
    metric("truncated", "length/truncated", 4)))  # fmt: skip


def responses_figure(runs: Sequence[RunData]) -> FigureSpec:
    """What the responses are like: verdicts, lengths, cuts, styles."""
    held = held_out(runs)
    cut = (metric("training", "length/clip_ratio", 1), *_held(held, "clip_ratio", 0))
    styles = [_style_of(label.capitalize(), key, accent, held) for key, (label, accent) in _styles(runs).items()]
    panels = (
        VERDICTS,
        LENGTHS,
        Panel("Truncated at the limit", "share of responses (clip ratio)", cut, "share"),
        *styles,
    )
    caption = "Training responses of every step"
    caption += "; thin lines where held-out ones are shown beside them." if held else "."
    if all(run.kind == "sft" for run in runs):
        caption = "Held-out responses of every evaluation."
    return FigureSpec(
        "answers", "What the responses are like", _captioned(caption, runs), filled(panels, runs), 3, (3.9, 2.75)
    )


def _style_of(title: str, key: str, accent: int, held: HeldOut | None) -> Panel:
    training = metric("training", f"style/{key}", accent, thin=held is not None)
    return Panel(title, "share of responses", (training, *_held(held, key, accent)), "share")


# --- optimisation -----------------------------------------------------------------------------------------------------

OPTIMISATION = (
    Panel("KL to the base model", "nats per token", (metric("KL", "kl/reference", 0),)),
    Panel("KL of one step", "updated policy to the one that sampled, nats per token", (metric("KL", "kl/old", 0),)),
    Panel("Training loss", "cross-entropy, nats per response token", (metric("loss", "loss/sft", 2),), "free"),
    Panel("Entropy", "nats per token", (metric("entropy", "entropy", 3),)),
    Panel("Ratio", "new to old policy, mean", (metric("mean", "ratio/mean", 0),), "free"),
    Panel("Largest ratio", "largest distance from 1 in a step", (metric("distance", "ratio/max", 4),)),
    Panel("Clipped", "share of tokens whose gradient the clip takes", (
        metric("clipped", "ratio/clip_fraction", 1),), "share"),
    Panel("Critic", "share of the returns' variance explained", (
        metric("explained", "value/explained_variance", 2),)),
    Panel("Gradient norms", "L2 norm before clipping", (
        metric("actor", "actor/grad_norm", 0), metric("critic", "critic/grad_norm", 1)), "log"),
    Panel("Engine against learner", "difference of log-probabilities", (
        metric("mean", "mismatch/mean", 0), metric("max", "mismatch/max", 4)), "log"),
    Panel("Losses", "mean over minibatches", (
        metric("policy", "loss/policy", 0), metric("value", "loss/value", 1), metric("KL", "loss/kl", 3)), "free"),
    Panel("Learning rates", "mean of the step's updates", (
        metric("actor", "actor/lr", 0), metric("critic", "critic/lr", 1))),
    Panel("Packing", "share of the token budget in use", (metric("in use", "pack/token_utilization", 2),), "share"),
    Panel("Groups without a signal", "share of groups whose rewards are equal", (
        metric("equal", "group/equal_share", 4),), "share"),
)  # fmt: skip


def optimisation_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Diagnostics that separate a healthy run from a sick one, step by step."""
    panels = filled(OPTIMISATION, runs)
    return FigureSpec(
        "diagnostics", "Training diagnostics", _captioned("Every training step.", runs), panels, 3, (3.9, 2.75)
    )


# --- cost -------------------------------------------------------------------------------------------------------------

COST = (
    # grading runs during the rollout, so its seconds are part of the rollout's
    Panel("Time", "seconds per step, by phase", (
        metric("rollout", "time/rollout", 0), metric("score", "time/score", 3), metric("update", "time/update", 1)),
        stacked=True),
    Panel("Tokens", "per step", (metric("response", "tokens/response", 0), metric("prompt", "tokens/prompt", 1))),
    Panel("Throughput", "response tokens per second of the whole step", (
        metric("tokens/s", "time/tokens_per_second", 2),)),
)  # fmt: skip


def cost_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Time, tokens and memory."""
    names = sorted({key for run in runs for row in run.metrics for key in row if key.startswith("memory/")})
    lines = tuple(
        metric(name.removeprefix("memory/").removesuffix("_gib"), name, i % 5) for i, name in enumerate(names)
    )
    panels = filled([*COST, Panel("Memory", "GiB", lines)], runs)
    caption = _captioned("Every training step, evaluations apart.", runs)
    return FigureSpec("cost", "Time, tokens and memory", caption, panels, 2, (5.4, 2.75))
