"""Evaluations of a pipeline in one table; the others are compared with the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simplerl.pipeline.plan import Task, label
from simplerl.report import compare_output
from simplerl.storage import atomic

if TYPE_CHECKING:
    from simplerl.report.comparison import Comparison


def write_all(task: Task) -> None:
    """Write `table.md`, `table.json` and last `report.html`, with the training runs that the stage names."""
    from simplerl.report.caveats import caveats
    from simplerl.report.report import write_report
    from simplerl.report.run_data import read_run

    comparison = compared(task.takes)
    notes = caveats(comparison)
    atomic.write_text(task.folder / "table.md", compare_output.as_markdown(comparison, notes, by_model=True) + "\n")
    atomic.write_json(task.folder / "table.json", compare_output.as_dict(comparison, notes))
    runs = [read_run(each.folder) for each in task.takes if each.stage.run != "eval"]
    write_report(runs, task.product, comparison=comparison)


def compared(tasks: Sequence[Task]) -> Comparison:
    """The evaluations among some stages."""
    from simplerl.report.comparison import compare, from_eval
    from simplerl.report.eval_data import read_eval

    return compare([from_eval(read_eval(each.folder), label(each)) for each in tasks if each.stage.run == "eval"])


def table(tasks: Sequence[Task]) -> str:
    """The comparison as text; empty without an evaluation."""
    from simplerl.report.caveats import caveats

    if not any(task.stage.run == "eval" for task in tasks):
        return ""
    comparison = compared(tasks)
    return compare_output.as_text(comparison, caveats(comparison))
