"""The figures of a report: what is shown of a run, in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from simplerl.analysis.panels import FigureSpec, Line, Panel, evaluated, filled, metric, overlaid
from simplerl.analysis.passes import pass_curves
from simplerl.analysis.run_data import EMPTY, GREEDY, EvalKey, RunData, Series

STYLES = {"code": ("program code", 1), "reflection": ("self-checks", 0), "unboxed": ("no boxed answer", 4)}


def figures(runs: Sequence[RunData]) -> list[FigureSpec]:
    """The figures that have something to show."""
    makers = (dynamics_figure, benchmarks_figure, passes_figure, responses_figure, optimisation_figure, cost_figure)
    return [spec for make in makers if (spec := make(runs)).panels]


# --- how it learned ---------------------------------------------------------------------------------------------------


def dynamics_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Accuracy, reward, length and style against the step: held-out where it was evaluated, else while training."""
    run = runs[0]
    panels = (_accuracy_panel(run), _reward_panel(), _length_panel(run), _style_panel(run))
    caption = "Measured on training responses."
    if run.evals:
        caption = f"Measured on {run.eval_rows()[0]['n']:,} held-out problems of {run.main_set}."
        caption += " Bands are 95 % Wilson intervals." if len(runs) == 1 else ""
    return FigureSpec("dynamics", "How it learned", _captioned(caption, runs), filled(panels, runs))


def _captioned(caption: str, runs: Sequence[RunData]) -> str:
    return f"{caption} {overlaid(runs)}".strip()


def _accuracy_panel(run: RunData) -> Panel:
    if not run.evals:
        return Panel("Accuracy", "share of training responses", (metric("training", "reward/accuracy"),), "share")
    greedy, sampled = (
        evaluated("greedy", "accuracy", 0, GREEDY, band=True),
        evaluated("sampled", "accuracy", 1, band=True),
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
        lines.append(evaluated("held-out", "length", 3))
    return Panel("Response length", "mean tokens", tuple(lines))


def _style_panel(run: RunData) -> Panel:
    line = evaluated if run.evals else (lambda label, key, accent: metric(label, f"style/{key}", accent))
    where = f"share of held-out responses at {_sampled(run)}" if run.evals else "share of training responses"
    return Panel("Style", where, tuple(line(label, key, accent) for key, (label, accent) in STYLES.items()), "share")


def _sampled(run: RunData) -> str:
    return f"temperature {run.main_temperature:g}"


# --- benchmarks -------------------------------------------------------------------------------------------------------


def benchmarks_figure(runs: Sequence[RunData]) -> FigureSpec:
    """Accuracy and response length of every benchmark on twin axes, and of their average."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    heats = [heat for heat in dict.fromkeys(key.temperature for key in keys) if _several_sets(runs, heat)]
    panels = [_average_panel(heat) for heat in heats] + [_benchmark_panel(key) for key in keys]
    caption = "Held-out problems: accuracy on the left axis, mean response tokens on the right one."
    if heats:
        caption += " In the average every set counts once, whatever its size."
    return FigureSpec("benchmarks", "Accuracy and length, set by set", _captioned(caption, runs), filled(panels, runs))


def _several_sets(runs: Sequence[RunData], temperature: float) -> bool:
    return any(len(run.sets(temperature)) > 1 for run in runs)


def _average_panel(heat: float) -> Panel:
    lines = (
        Line("accuracy", lambda run: run.average("accuracy", heat), 0, dots=True),
        Line("tokens", lambda run: run.average("length", heat), 3, dots=True, right=True),
    )
    return Panel("Average of all sets", _heat(heat), lines, "share")


def _benchmark_panel(key: EvalKey) -> Panel:
    accuracy = evaluated("accuracy", "accuracy", 0, key.temperature, key.set, band=True)
    tokens = evaluated("tokens", "length", 3, key.temperature, key.set, right=True)
    return Panel(key.set, _heat(key.temperature), (accuracy, tokens), "share")


def _heat(temperature: float) -> str:
    return "greedy" if temperature == GREEDY else f"temperature {temperature:g}"


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
    return Panel(key.set, _heat(key.temperature), tuple(lines), "share")


# --- training responses -----------------------------------------------------------------------------------------------

RESPONSES = (
    Panel("Verdicts", "share of training responses", (
        metric("correct", "verdict/correct", 2), metric("wrong", "verdict/wrong", 1),
        metric("no answer", "verdict/no_answer", 3), metric("grader error", "verdict/error", 4)),
        "share", stacked=True),
    Panel("Length by verdict", "mean tokens of training responses", (
        metric("correct", "length/correct", 2), metric("not correct", "length/wrong", 1),
        metric("cut", "length/cut", 4))),
    Panel("Cut at the limit", "share of responses (clip ratio)", (
        metric("training", "length/clip_ratio", 1), evaluated("held-out", "clip_ratio", 0)), "share"),
    Panel("Program code", "share of responses", (
        metric("training", "style/code", 1, thin=True), evaluated("held-out", "code", 1)), "share"),
    Panel("Self-checks", "share of responses", (
        metric("training", "style/reflection", 0, thin=True), evaluated("held-out", "reflection", 0)), "share"),
    Panel("No boxed answer", "share of responses", (
        metric("training", "style/unboxed", 4, thin=True), evaluated("held-out", "unboxed", 4)), "share"),
)  # fmt: skip


def responses_figure(runs: Sequence[RunData]) -> FigureSpec:
    """What the responses are like: verdicts, lengths, cuts, styles."""
    caption = "Training responses of every step"
    caption += "; thin lines where held-out ones are shown beside them." if runs[0].evals else "."
    panels = filled(RESPONSES, runs)
    return FigureSpec("answers", "What the responses are like", _captioned(caption, runs), panels, 3, (3.9, 2.75))


# --- optimisation -----------------------------------------------------------------------------------------------------

OPTIMISATION = (
    Panel("KL to the base model", "nats per token", (metric("KL", "kl/reference", 0),)),
    Panel("KL of one step", "updated policy to the one that sampled, nats per token", (metric("KL", "kl/old", 0),)),
    Panel("Entropy", "nats per token", (metric("entropy", "entropy", 3),)),
    Panel("Ratio", "new to old policy, mean", (metric("mean", "ratio/mean", 0),), "free"),
    Panel("Largest ratio", "largest distance from 1 in a step", (metric("distance", "ratio/max", 4),)),
    Panel("Clipped", "share of tokens whose gradient the clip takes", (
        metric("clipped", "ratio/clip_share", 1),), "share"),
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
    Panel("Groups without a signal", "share of groups whose rewards are equal", (
        metric("equal", "group/equal_share", 4),), "share"),
)  # fmt: skip


def optimisation_figure(runs: Sequence[RunData]) -> FigureSpec:
    """What tells a healthy run from a sick one, step by step."""
    panels = filled(OPTIMISATION, runs)
    return FigureSpec(
        "diagnostics", "Training diagnostics", _captioned("Every training step.", runs), panels, 3, (3.9, 2.75)
    )


# --- cost -------------------------------------------------------------------------------------------------------------

COST = (
    # Grading runs during the rollout, so its seconds are within those.
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
