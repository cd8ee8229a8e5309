"""What happened in a run, in plain words: every sentence is computed from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import NamedTuple

from simplerl.formatting import NO_BREAK, bounds, duration, percent
from simplerl.report.dynamics import Change, change, length_dynamics, training_seconds
from simplerl.report.progress import progress
from simplerl.report.run_data import GREEDY, Row, RunData, Series

STYLE_WORDS = {"code": "with program code", "unboxed": "without a boxed answer", "reflection": "with a self-check"}
PHASES = ("rollout", "score", "update")
Show = Callable[[float], str]
LOSS: Show = "{:.3f}".format
# smaller changes of the mean length get no sentence
NOTABLE = 0.02


class Fact(NamedTuple):
    """A headline: its quantity, its start, its end."""

    label: str
    first: str
    last: str


def in_percent(share: float, digits: int = 1) -> str:
    """A share as "5.2 %" with a non-breaking space; exactly 0 and 1 without decimals."""
    return percent(share, 0 if share in (0, 1) else digits, NO_BREAK)


def interval(row: Row) -> str:
    """The accuracy of an evaluation with its 95 % interval: "5.8 % [4.1, 8.2]"."""
    return f"{in_percent(row['accuracy'])} {bounds(row['accuracy_low'], row['accuracy_high'])}"


def spread(values: Sequence[float], show: Show = in_percent) -> str:
    """One value, or the lowest and the highest of several runs."""
    words = list(dict.fromkeys(show(value) for value in sorted(values)))
    return words[0] if len(words) == 1 else f"{words[0]}\N{EN DASH}{words[-1]}"


# --- sentences --------------------------------------------------------------------------------------------------------


def summarise(runs: Sequence[RunData]) -> list[str]:
    """The summary of one run, or of several of the same recipe (their lowest and highest values)."""
    sentences = [*_progress(runs), *_losses(runs)]
    if not runs[0].evals:
        sentences += _without_evaluations(runs)
    else:
        temperatures = dict.fromkeys((GREEDY, runs[0].main_temperature) if runs[0].has_greedy else (None,))
        for temperature in temperatures:
            sentences += _accuracy(runs, temperature)
        sentences += _averages(runs)
        for style in STYLE_WORDS:
            sentences += _style(runs, style)
        sentences += _length(runs)
    return [*sentences, *_reward_rule(runs), *_errors(runs), *_time(runs)]


def _progress(runs: Sequence[RunData]) -> list[str]:
    sentences = []
    for run in runs:
        words, finished = progress(run.metrics, run.recipe, run.last_step)
        if finished is False:
            sentences.append(f"{run.name} is at {words}: these are its numbers so far.")
    return sentences


def _losses(runs: Sequence[RunData]) -> list[str]:
    """Summary of fine-tuning: the loss at start and end, and the step after which validation got worse."""
    sentences = []
    if moved := _from_to([run.metric("loss/sft") for run in runs], LOSS):
        sentences.append(f"Training loss {moved} nats per response token.")
    kept = [run.validated("loss") for run in runs]
    if moved := _from_to(kept, LOSS):
        count = runs[0].validation[-1]["sequences"]
        where = f"On {count:,} held-out solutions the validation loss"
        sentences.append(f"{where} {moved} nats per response token{_lowest(kept)}.")
    return sentences


def _from_to(series: Sequence[Series], show: Show) -> str:
    """First and last value of every run; empty if a run has none."""
    if not all(one.steps.size for one in series):
        return ""
    if max(one.steps.size for one in series) == 1:
        return f"is {spread([one.values[0] for one in series], show)}"
    first, last = (spread([one.values[index] for one in series], show) for index in (0, -1))
    return f"went from {first} to {last}"


def _lowest(series: Sequence[Series]) -> str:
    at = [int(one.values.argmin()) for one in series]
    if any(index == one.steps.size - 1 for index, one in zip(at, series, strict=True)):
        return ""
    value = spread([one.values.min() for one in series], LOSS)
    steps = spread([one.steps[index] for index, one in zip(at, series, strict=True)], "{:.0f}".format)
    return f"; it was lowest, {value}, at step {steps}"


def _without_evaluations(runs: Sequence[RunData]) -> list[str]:
    if runs[0].kind == "sft":
        return ["No held-out problem was answered, so the loss is all there is to see."]
    words = "No held-out evaluation was made (eval.every is 0), so all numbers are of training responses."
    return [words, *_training_reward(runs)]


def _accuracy(runs: Sequence[RunData], temperature: float | None) -> list[str]:
    rows = [run.eval_rows(temperature) for run in runs]
    if any(len(one) < 2 for one in rows):
        return []
    heat = runs[0].main_temperature if temperature is None else temperature
    how = "Greedy accuracy" if heat == GREEDY else f"Accuracy at temperature {heat:g}"
    where = f"on {rows[0][0]['n']:,} held-out problems ({runs[0].main_set})"
    if len(runs) == 1:
        first, last = rows[0][0], rows[0][-1]
        return [f"{how} {where} {_moved(first, last)} {interval(first)} to {interval(last)} (95 % intervals)."]
    firsts, lasts = [one[0]["accuracy"] for one in rows], [one[-1]["accuracy"] for one in rows]
    return [f"{how} {where} went from {spread(firsts)} to {spread(lasts)} in {len(runs)} runs."]


def _averages(runs: Sequence[RunData]) -> list[str]:
    """The mean over sets, where several were evaluated at one temperature."""
    sentences = []
    for heat in dict.fromkeys(key.temperature for key in runs[0].keys):
        sets = runs[0].sets(heat)
        found = [run.average("accuracy", heat).values for run in runs]
        if len(sets) > 1 and all(values.size >= 2 for values in found):
            first, last = (spread([float(values[index]) for values in found]) for index in (0, -1))
            how = "greedy accuracy" if heat == GREEDY else f"accuracy at temperature {heat:g}"
            sentences.append(f"On average over {len(sets)} sets, {how} went from {first} to {last}.")
    return sentences


def _moved(first: Row, last: Row) -> str:
    if last["accuracy_low"] > first["accuracy_high"]:
        return "rose from"
    return "fell from" if last["accuracy_high"] < first["accuracy_low"] else "did not clearly change:"


def _style(runs: Sequence[RunData], style: str) -> list[str]:
    changes = _changes(runs, style)
    if not changes:
        return []
    first, last = (spread([one[index] for one in changes]) for index in (0, 1))
    sentence = f"Held-out responses {STYLE_WORDS[style]} went from {first} to {last}"
    if style == "reflection" and (half := _reaches_half(runs)):
        sentence += f"; from step {half} on they were at least half of all"
    return [sentence + "."]


def _changes(runs: Sequence[RunData], name: str) -> list[Change]:
    changes = [change(run, name) for run in runs]
    return [one for one in changes if one] if all(changes) else []


def _reaches_half(runs: Sequence[RunData]) -> str:
    """The first evaluation from which on self-checks stay in at least half of the responses."""
    steps = []
    for run in runs:
        series = run.evaluation("reflection")
        below = (series.values < 0.5).nonzero()[0]
        start = int(below[-1]) + 1 if below.size else 0
        if start in (0, len(series.steps)):
            return ""
        steps.append(series.steps[start])
    return spread(steps, "{:.0f}".format)


def _length(runs: Sequence[RunData]) -> list[str]:
    found = [length_dynamics(run.eval_rows()) for run in runs]
    if not all(found):
        return []
    lengths = [one for one in found if one]
    start, lowest, final = (spread([one[index] for one in lengths], "{:.0f}".format) for index in (0, 1, 3))
    fall, rise = (spread(values, _whole) for values in ([one.fall for one in lengths], [one.rise for one in lengths]))
    steps = spread([one.lowest_step for one in lengths], "{:.0f}".format)
    fell, rose = (min(values) >= NOTABLE for values in ([x.fall for x in lengths], [x.rise for x in lengths]))
    if fell and rose:
        return [
            f"Mean response length, over three evaluations at a time, first fell from {start} to {lowest} tokens "
            f"(by {fall}, around step {steps}), then rose to {final} (by {rise})."
        ]
    verb = "fell" if fell else "rose" if rose else "went"
    return [f"Mean response length, over three evaluations at a time, {verb} from {start} to {final} tokens."]


def _whole(share: float) -> str:
    return in_percent(share, 0)


def _training_reward(runs: Sequence[RunData]) -> list[str]:
    moved = _from_to([run.metric("reward/mean") for run in runs], "{:.2f}".format)
    return [f"The mean training reward {moved}."] if moved else []


def _reward_rule(runs: Sequence[RunData]) -> list[str]:
    rewards = [run.recipe.get("reward") for run in runs if run.kind == "train"]
    names = {reward.get("name") if isinstance(reward, dict) else reward for reward in rewards}
    if names != {"simplerl"}:
        return []
    return ["The reward knows only the box and the answer; nothing in it mentions style or length."]


def _errors(runs: Sequence[RunData]) -> list[str]:
    worst = max((run.metric("verdict/error").values.max(initial=0) for run in runs), default=0)
    if not worst:
        return []
    return [
        f"The verifier failed on up to {in_percent(worst)} of a step's responses; they are counted apart from wrong."
    ]


def _time(runs: Sequence[RunData]) -> list[str]:
    seconds = [training_seconds(run) for run in runs]
    if not all(seconds):
        return []
    each = median(value for run in runs for value in run.metric("time/total").values)
    phases = {phase: sum(run.metric(f"time/{phase}").values.sum() for run in runs) / sum(seconds) for phase in PHASES}
    parts = ", ".join(f"{_whole(share)} {phase}" for phase, share in phases.items() if share >= 0.01)
    steps = spread([len(run.metrics) for run in runs], "{:.0f}".format)
    return [f"Training took {spread(seconds, duration)} for {steps} steps (median {each:.1f} s a step: {parts})."]


# --- headlines --------------------------------------------------------------------------------------------------------


def headlines(runs: Sequence[RunData]) -> list[Fact]:
    """The few numbers to read first."""
    facts = _loss_facts(runs)
    sampled = [("Sampled accuracy", "accuracy", None)] * (runs[0].main_temperature != GREEDY)
    for label, name, temperature in (
        ("Greedy accuracy", "accuracy", GREEDY),
        *sampled,
        ("Program code", "code", None),
        ("Self-checks", "reflection", None),
        ("No boxed answer", "unboxed", None),
    ):
        changes = [change(run, name, temperature) for run in runs]
        if all(changes):
            firsts, lasts = zip(*(one for one in changes if one), strict=True)
            facts.append(Fact(label, _about(firsts), _about(lasts)))
    lengths = [length_dynamics(run.eval_rows()) for run in runs]
    if all(lengths):
        starts, lows, _, ends = zip(*(one for one in lengths if one), strict=True)
        tokens = "{:.0f}".format
        label = f"Tokens, lowest {tokens(sum(lows) / len(runs))}"
        facts.append(Fact(label, tokens(sum(starts) / len(runs)), tokens(sum(ends) / len(runs))))
    return facts


def _loss_facts(runs: Sequence[RunData]) -> list[Fact]:
    for label, series in (
        ("Validation loss", [run.validated("loss").values for run in runs]),
        ("Training loss", [run.metric("loss/sft").values for run in runs]),
    ):
        if all(values.size >= 2 for values in series):
            first, last = (f"{fmean(values[index] for values in series):.2f}" for index in (0, -1))
            return [Fact(label, first, last)]
    return []


def _about(values: Sequence[float]) -> str:
    return _whole(sum(values) / len(values))
