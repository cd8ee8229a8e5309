"""A comparison of models: accuracies on every benchmark, and differences from the first model.

Two models that answered equal problems are compared problem by problem. A published row has no responses: its
difference is one of two independent accuracies, with a wider interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simplerl.errors import DataError
from simplerl.report.eval_data import EvalData
from simplerl.report.published import Published
from simplerl.stats import intervals
from simplerl.stats.intervals import Estimate, mean_by_problem
from simplerl.stats.paired import bootstrap, mcnemar, paired_shares
from simplerl.stats.power import detectable_from_interval, detectable_paired, detectable_unpaired

AVERAGE = "average"
COLUMNS = ("problem_id", "sample_index", "question", "verdict")

Problem = tuple[str, str]
"""Id and question: an equal id in two versions of a set is not an equal problem."""


@dataclass(frozen=True)
class Measured:
    """One model on one benchmark."""

    estimate: Estimate
    problems: int
    samples: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    outcomes: Mapping[Problem, tuple[int, int]] = field(default_factory=dict)
    """Correct and total responses of each problem; empty for published numbers."""

    errors: int = 0
    """Responses that the verifier failed on; they count as not correct."""


@dataclass(frozen=True)
class Contender:
    """One column of the comparison."""

    label: str
    measured: Mapping[str, Measured]
    average: tuple[str, ...] = ()
    """Benchmarks in its suite's average."""

    notes: tuple[str, ...] = ()
    finished: bool = True


@dataclass(frozen=True)
class Difference:
    """A contender minus the first one."""

    estimate: Estimate
    method: str
    problems: int | None = None
    """Problems that both answered, if the comparison is paired."""

    p: float | None = None
    """p of McNemar's exact test, for one response per problem."""

    detectable: float | None = None
    """The smallest true difference that a comparison of this size finds in 4 of 5 cases. None: it finds none."""


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. `average` names the benchmarks of the last row; empty if the models share too few."""

    contenders: tuple[Contender, ...]
    benchmarks: tuple[str, ...]
    average: tuple[str, ...]
    averages: tuple[Estimate | None, ...]
    differences: tuple[Mapping[str, Difference], ...]
    """One entry per contender after the first, by benchmark and `AVERAGE`."""


# --- contenders -------------------------------------------------------------------------------------------------------


def from_eval(data: EvalData, label: str) -> Contender:
    """An evaluation's responses so far. Raises `DataError` if there are none."""
    measured = {name: _measured(data.responses(name, COLUMNS), data.decoding.get(name, {})) for name in data.files}
    there = {name: one for name, one in measured.items() if one is not None}
    if not there:
        raise DataError(f"{data.path} has no responses yet; try again when the first are there")
    return Contender(label, there, data.average, finished=data.finished)


def _measured(rows: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> Measured | None:
    outcomes: dict[Problem, tuple[int, int]] = {}
    errors = 0
    for row in rows:
        errors += row["verdict"] == "error"
        key = (row["problem_id"], row["question"] or "")
        correct, responses = outcomes.get(key, (0, 0))
        outcomes[key] = (correct + (row["verdict"] == "correct"), responses + 1)
    if not outcomes:
        return None
    samples = min(responses for _, responses in outcomes.values())
    return Measured(_accuracy(outcomes.values()), len(outcomes), samples, settings, outcomes, errors)


def _accuracy(outcomes: Iterable[tuple[int, int]]) -> Estimate:
    pairs = list(outcomes)
    return mean_by_problem([correct / responses for correct, responses in pairs], sum(pair[1] for pair in pairs))


def pooled(contenders: Sequence[Contender], label: str) -> Contender:
    """Models that differ in their seed, as one: a problem's responses are those of all, if all answered it.

    Intervals are then about problems. How much seeds differ, only separate seeds can show.
    """
    shared = [name for name in contenders[0].measured if all(name in one.measured for one in contenders)]
    measured = {name: _joined([one.measured[name] for one in contenders]) for name in shared}
    there = {name: one for name, one in measured.items() if one is not None}
    if not there:
        raise DataError(f"{label}: its parts have no problem in common, so they cannot be pooled")
    notes = tuple(dict.fromkeys(note for one in contenders for note in one.notes))
    return Contender(label, there, contenders[0].average, notes, all(one.finished for one in contenders))


def _joined(parts: Sequence[Measured]) -> Measured | None:
    common = [key for key in parts[0].outcomes if all(key in part.outcomes for part in parts)]
    if not common:
        return None
    outcomes = {
        key: (sum(part.outcomes[key][0] for part in parts), sum(part.outcomes[key][1] for part in parts))
        for key in common
    }
    samples = min(responses for _, responses in outcomes.values())
    errors = sum(part.errors for part in parts)
    return Measured(_accuracy(outcomes.values()), len(outcomes), samples, parts[0].settings, outcomes, errors)


def from_published(row: Published, label: str) -> Contender:
    """A published row."""
    measured = {
        name: Measured(score.estimate, score.problems, score.samples, _decoding(score.settings))
        for name, score in row.scores.items()
    }
    return Contender(label, measured, row.average, notes=(row.note,) if row.note else ())


def _decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "samples"}


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(contenders: Sequence[Contender]) -> Comparison:
    """Compare the others with the first."""
    wanted = {name for one in contenders for name in one.measured}
    contenders = [_with_long_names(one, wanted) for one in contenders]
    benchmarks = tuple(dict.fromkeys(name for one in contenders for name in one.measured))
    over = _average_over(contenders)
    return Comparison(
        contenders=tuple(contenders),
        benchmarks=benchmarks,
        average=over,
        averages=tuple(_average(one, over) for one in contenders),
        differences=tuple(_differences(one, contenders[0], over) for one in contenders[1:]),
    )


def _with_long_names(contender: Contender, wanted: Iterable[str]) -> Contender:
    """`aime24-avg32` counts as `aime24` if it has 32 samples or more and another contender names it so."""
    added = {}
    for name in wanted:
        short, dash, samples = name.rpartition("-avg")
        own = contender.measured.get(short)
        if dash and samples.isdigit() and own and own.samples >= int(samples) and name not in contender.measured:
            added[name] = own
    return replace(contender, measured={**contender.measured, **added}) if added else contender


def _average_over(contenders: Sequence[Contender]) -> tuple[str, ...]:
    """The first suite's average that a contender has completely; without one, the benchmarks that all share.

    If several parts have equal problems, such as a set at two temperatures, the first counts: parts are independent.
    """
    for one in contenders:
        if one.average and all(name in one.measured for name in one.average):
            return one.average
    chosen: dict[str, set[Problem]] = {}
    for name, measured in contenders[0].measured.items():
        problems = set(measured.outcomes)
        shared = all(name in one.measured for one in contenders)
        if shared and not any(problems & others for others in chosen.values()):
            chosen[name] = problems
    return tuple(chosen) if len(chosen) > 1 else ()


def _average(contender: Contender, over: Sequence[str]) -> Estimate | None:
    if not over or any(name not in contender.measured for name in over):
        return None
    return intervals.average([contender.measured[name].estimate for name in over])


def _differences(contender: Contender, first: Contender, over: Sequence[str]) -> dict[str, Difference]:
    shared = [name for name in first.measured if name in contender.measured]
    found = {name: difference(contender.measured[name], first.measured[name]) for name in shared}
    if over and all(name in found for name in over):
        found[AVERAGE] = _mean([found[name] for name in over])
    return found


def _mean(parts: Sequence[Difference]) -> Difference:
    estimate = intervals.average([part.estimate for part in parts])
    detectable = detectable_from_interval(estimate.low, estimate.high)
    return Difference(estimate, f"mean of {len(parts)}", detectable=detectable)


def difference(after: Measured, before: Measured) -> Difference:
    """after - before: paired over the problems that both answered, else as independent accuracies."""
    common = [key for key in before.outcomes if key in after.outcomes]
    if not common:
        return _unpaired(after, before)
    pairs = [(after.outcomes[key], before.outcomes[key]) for key in common]
    single = all(responses == 1 for pair in pairs for _, responses in pair)
    return _paired_single(pairs) if single else _paired_several(pairs)


Pairs = Sequence[tuple[tuple[int, int], tuple[int, int]]]


def _paired_single(pairs: Pairs) -> Difference:
    """One response of each to a problem: Tango's interval and McNemar's exact test."""
    gained = sum(after > before for (after, _), (before, _) in pairs)
    lost = sum(after < before for (after, _), (before, _) in pairs)
    return Difference(
        estimate=paired_shares(gained, lost, len(pairs)),
        method="paired",
        problems=len(pairs),
        p=mcnemar(gained, lost),
        detectable=detectable_paired(len(pairs), (gained + lost) / len(pairs)),
    )


def _paired_several(pairs: Pairs) -> Difference:
    """Several responses: the bootstrap by problem. It finds no spread if all problems differ by an equal amount."""
    # rounded: 1/10 and 3/10 - 2/10 are equal differences
    gaps = [round(after / n - before / m, 12) for (after, n), (before, m) in pairs]
    if len(set(gaps)) == 1:
        estimate = intervals.difference(_accuracy(pair[0] for pair in pairs), _accuracy(pair[1] for pair in pairs))
        return Difference(estimate, "no spread, as if unpaired", len(pairs))
    estimate = bootstrap(gaps)
    detectable = detectable_from_interval(estimate.low, estimate.high)
    return Difference(estimate, "paired, bootstrap", len(pairs), detectable=detectable)


def _unpaired(after: Measured, before: Measured) -> Difference:
    estimate = intervals.difference(after.estimate, before.estimate)
    if after.samples == before.samples == 1:
        detectable = detectable_unpaired(before.problems, after.problems, before.estimate.value)
    else:
        detectable = detectable_from_interval(estimate.low, estimate.high)
    return Difference(estimate, "unpaired", detectable=detectable)
