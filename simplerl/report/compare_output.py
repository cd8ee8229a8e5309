"""A comparison as text, Markdown, CSV and plain values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from simplerl.formatting import MISSING, Grid, markdown, markdown_cell, p_value, points, table, with_bounds
from simplerl.report.comparison import AVERAGE, Comparison, Contender, Difference
from simplerl.stats.intervals import Estimate


def as_text(comparison: Comparison, notes: Sequence[str]) -> str:
    """Aligned columns, in percent; differences in points."""
    blocks = [table(accuracies(comparison))]
    blocks += [table(differences(comparison, number)) for number in range(len(comparison.differences))]
    blocks += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(blocks)


def as_markdown(comparison: Comparison, notes: Sequence[str], *, by_model: bool = False) -> str:
    """Tables in Markdown, with a row per benchmark or a row per model."""
    if by_model:
        grids = [paper_table(comparison), *[paper_differences(comparison)] * bool(comparison.differences)]
    else:
        grids = [accuracies(comparison)]
        grids += [differences(comparison, number) for number in range(len(comparison.differences))]
    blocks = [markdown(grid) for grid in grids]
    blocks += ["\n".join(f"- {markdown_cell(note)}" for note in notes)] if notes else []
    return "\n\n".join(blocks)


# --- tables -----------------------------------------------------------------------------------------------------------


def accuracies(comparison: Comparison) -> Grid:
    """A row per benchmark, a column per contender."""
    head = ("accuracy, %, with 95 % interval", *(one.label for one in comparison.contenders))
    rows = [
        (f"{name} ({_problems(comparison, name)})", *(_accuracy(one, name) for one in comparison.contenders))
        for name in comparison.benchmarks
    ]
    if comparison.average:
        rows.append((AVERAGE, *(with_bounds(*mean) if mean else MISSING for mean in comparison.averages)))
    return [head, *rows]


def _problems(comparison: Comparison, name: str) -> str:
    sizes = sorted({one.measured[name].problems for one in comparison.contenders if name in one.measured})
    return "/".join(f"{size:,}" for size in sizes)


def _accuracy(contender: Contender, name: str) -> str:
    one = contender.measured.get(name)
    if one is None:
        return MISSING
    return with_bounds(*one.estimate) + (f" avg@{one.samples}" if one.samples > 1 else "")


def differences(comparison: Comparison, number: int) -> Grid:
    """Differences of one contender from the first, in points."""
    first, other = comparison.contenders[0], comparison.contenders[number + 1]
    found = comparison.differences[number]
    rows = [(name, *_difference(found[name])) for name in (*comparison.benchmarks, AVERAGE) if name in found]
    head = (f"{other.label} - {first.label}", "points", "how", "p (McNemar)", "smallest that shows")
    return [head, *(rows or [("nothing in common", *(MISSING,) * 4)])]


def _difference(one: Difference) -> tuple[str, ...]:
    return (
        with_bounds(*one.estimate, signed=True),
        one.method + (f", {one.problems:,} problems" if one.problems else ""),
        MISSING if one.p is None else p_value(one.p),
        MISSING if one.detectable is None else points(one.detectable),
    )


# --- as papers print them ---------------------------------------------------------------------------------------------


def paper_table(comparison: Comparison) -> Grid:
    """A row per model, a column per benchmark and one for the average; a cell has a line for the value and one for its
    interval.
    """
    names = [f"{name}\n({_problems(comparison, name)})" for name in comparison.benchmarks]
    rows = [
        (one.label, *(_accuracy(one, name) for name in comparison.benchmarks), with_bounds(*mean) if mean else MISSING)
        for one, mean in zip(comparison.contenders, comparison.averages, strict=True)
    ]
    rows = [(label, *map(_in_lines, cells)) for label, *cells in rows]
    width = 1 + len(names) + bool(comparison.average)
    return [row[:width] for row in (("model", *names, AVERAGE), *rows)]


def paper_differences(comparison: Comparison) -> Grid:
    """A row per model after the first: difference in points, and McNemar's p or the kind of comparison."""
    first, *others = comparison.contenders
    columns = [*comparison.benchmarks, *[AVERAGE] * bool(comparison.average)]
    rows = [
        (one.label, *(_gained(found[name]) if name in found else MISSING for name in columns))
        for one, found in zip(others, comparison.differences, strict=True)
    ]
    return [(f"minus {first.label}\n(points)", *columns), *rows]


def _gained(one: Difference) -> str:
    how = one.method if one.p is None else f"p = {p_value(one.p)}"
    return f"{_in_lines(with_bounds(*one.estimate, signed=True))}\n{how}"


def _in_lines(cell: str) -> str:
    """ "66.7 [54.1, 77.3] avg@4" on lines of its own."""
    return cell.replace(" [", "\n[").replace("] ", "]\n")


# --- for programs -----------------------------------------------------------------------------------------------------

FIELDS: tuple[str, ...] = (
    "thing", "benchmark", "problems", "samples", "accuracy", "low", "high", "difference", "difference_low",
    "difference_high", "method", "paired_problems", "p", "smallest_difference",
)  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """A row per model and benchmark; shares from 0 to 1, with the difference to the first model."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for thing in _things(comparison):
        for name, cell in thing["benchmarks"].items():
            gap = cell.get("difference", {})
            renamed = {"difference": gap.get("value"), "difference_low": gap.get("low")}
            renamed |= {"difference_high": gap.get("high"), "paired_problems": gap.get("problems")}
            rest = {key: gap.get(key) for key in ("method", "p", "smallest_difference")}
            own = {key: value for key, value in cell.items() if key in FIELDS}
            writer.writerow({"thing": thing["name"], "benchmark": name} | own | renamed | rest)
    return file.getvalue().rstrip("\n")


def as_dict(comparison: Comparison, notes: Sequence[str]) -> dict[str, Any]:
    """Plain values for JSON; shares from 0 to 1, differences to the first model."""
    return {"things": _things(comparison), "average_over": list(comparison.average), "notes": list(notes)}


def _things(comparison: Comparison) -> list[dict[str, Any]]:
    gaps = [{}, *comparison.differences]
    things = []
    for one, mean, found in zip(comparison.contenders, comparison.averages, gaps, strict=True):
        cells: dict[str, Any] = {
            name: {
                "problems": measured.problems,
                "samples": measured.samples,
                **_estimate(measured.estimate, "accuracy"),
            }
            for name, measured in one.measured.items()
        }
        if mean is not None:
            cells[AVERAGE] = _estimate(mean, "accuracy")
        for name, gap in found.items():
            cells[name]["difference"] = _gap(gap)
        things.append({"name": one.label, "benchmarks": cells})
    return things


def _estimate(estimate: Estimate, name: str = "value") -> dict[str, float]:
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}


def _gap(one: Difference) -> dict[str, Any]:
    rest = {"method": one.method, "problems": one.problems, "p": one.p, "smallest_difference": one.detectable}
    return _estimate(one.estimate) | rest
