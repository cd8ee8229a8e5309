"""Warnings about a comparison, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from simplerl.report.comparison import Comparison, Contender, Measured
from simplerl.stats.power import size_in_words

SMALL = 50
"""Most problems of a benchmark for which a sentence says what it can show."""

SETTINGS = ("template", "temperature", "top_p", "max_tokens", "engine")


def caveats(comparison: Comparison) -> list[str]:
    """Sentences, the most serious first; empty if there is nothing to warn about."""
    first, *others = comparison.contenders
    lines = [line for one in others for line in (*_settings(one, first), *_problems(one, first))]
    for one in comparison.contenders:
        lines += _of_one(one)
    lines += _unpaired(comparison)
    return [*lines, *_averages(comparison), *_sizes(comparison)]


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings(one: Contender, first: Contender) -> Iterator[str]:
    """A line per setting and pair of values, with the benchmarks that differ."""
    shared = [name for name in first.measured if name in one.measured]
    for key in (*SETTINGS, "samples"):
        pairs: dict[tuple[Any, Any], list[str]] = {}
        for name in shared:
            here, there = _value(one.measured[name], key), _value(first.measured[name], key)
            if None not in (here, there) and here != there:
                pairs.setdefault((here, there), []).append(name)
        for (here, there), names in pairs.items():
            where = "" if len(names) == len(shared) else f" on {', '.join(names)}"
            yield f"{key.replace('_', '-')} differs{where}: {there} ({first.label}), {here} ({one.label})"


def _value(measured: Measured, key: str) -> Any:
    if key == "samples":
        return measured.samples
    # without sampling top-p has no effect
    greedy = key == "top_p" and measured.settings.get("temperature") == 0
    return None if greedy else measured.settings.get(key)


def _of_one(one: Contender) -> Iterator[str]:
    if not one.finished:
        yield f"{one.label} is not finished: these are its responses so far"
    for name, measured in one.measured.items():
        if measured.errors:
            failed = f"the verifier failed on {measured.errors:,} responses to {name}"
            yield f"{one.label}: {failed}; they count as not correct"
    yield from (f"{one.label}: {note}" for note in one.notes)


# --- problems ---------------------------------------------------------------------------------------------------------


def _problems(one: Contender, first: Contender) -> Iterator[str]:
    for name in first.measured:
        if name not in one.measured:
            continue
        after, before = one.measured[name], first.measured[name]
        common = len(after.outcomes.keys() & before.outcomes.keys())
        counts = f"{before.problems:,} problems ({first.label}), {after.problems:,} ({one.label})"
        if common and common < max(after.problems, before.problems):
            yield f"{name}: {counts}; the difference is over the {common:,} that both answered"
        elif after.outcomes and before.outcomes and not common:
            yield f"{name}: {counts}, and none in common; the difference is unpaired"
        elif after.problems != before.problems:
            yield f"{name}: {counts}: these are different sets"


def _unpaired(comparison: Comparison) -> list[str]:
    papers = [one.label for one in comparison.contenders if not any(m.outcomes for m in one.measured.values())]
    if not papers:
        return []
    verb = "has" if len(papers) == 1 else "have"
    return [f"{', '.join(papers)} {verb} no responses: differences are unpaired, of accuracies rounded in print"]


# --- sizes ------------------------------------------------------------------------------------------------------------


def _averages(comparison: Comparison) -> list[str]:
    if not comparison.average:
        return []
    without = [one.label for one, mean in zip(comparison.contenders, comparison.averages, strict=True) if mean is None]
    lines = [f"average: {', '.join(comparison.average)}, each with the same weight"]
    return lines + ([f"{', '.join(without)}: not all of them, so no average"] if without else [])


def _sizes(comparison: Comparison) -> list[str]:
    """Benchmarks of equal size, such as aime24 and aime24-avg32, share a sentence."""
    sizes = {name: _size(comparison.contenders, name) for name in comparison.benchmarks}
    small = sorted({size for size in sizes.values() if size <= SMALL})
    return [size_in_words(", ".join(name for name in sizes if sizes[name] == size), size) for size in small]


def _size(contenders: Sequence[Contender], name: str) -> int:
    return min(one.measured[name].problems for one in contenders if name in one.measured)
