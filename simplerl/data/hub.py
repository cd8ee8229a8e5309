"""Tables of the Hugging Face hub. `HF_ENDPOINT` names a mirror, `HF_TOKEN` opens what is gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simplerl.data.rows import Keys, Row, problems_from
from simplerl.errors import DataError, DependencyError


@dataclass(frozen=True, slots=True)
class HubTable:
    """A split of a data set on the hub and how its rows read. `convert` sees a row before `keys` do."""

    repo: str
    split: str = "test"
    subset: str | None = None
    file: str | None = None
    revision: str | None = None
    keys: Keys = field(default_factory=Keys)
    convert: Callable[[Row], Row] | None = None


def read_hub(table: HubTable) -> list[Row]:
    """The rows as the hub has them. Raises `DataError` with the reason when they cannot be had."""
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            f"reading {table.repo} from the hub needs the package `datasets` ({error}): pip install 'simplerl[hub]'"
        ) from error
    try:
        found = datasets.load_dataset(
            table.repo, table.subset, split=table.split, data_files=table.file, revision=table.revision
        )
    # The errors of the HTTP client, the hub and the readers have no common base.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"hub: {table.repo}, split {table.split!r}: {type(error).__name__}: {reason}") from error
    return [dict(row) for row in found]


def stored_rows(table: HubTable, prefix: str) -> list[Row]:
    """The rows in the form in which sets are stored; ids are `prefix/row number`."""
    rows = read_hub(table)
    problems = problems_from(map(table.convert, rows) if table.convert else rows, table.keys, prefix)
    return [
        {
            "id": f"{prefix}/{number}",
            "problem": problem.question,
            "answer": problem.answer,
            "level": problem.level,
            "subject": problem.subject,
            "solution": problem.solution,
            "source": f"hub:{table.repo}#{number}",
        }
        for number, problem in enumerate(problems)
    ]


# --- conversions that more than one set needs -------------------------------------------------------------------------


def after_hashes(row: Row) -> Row:
    """GSM8K's form: the solution, then `#### 1,234`; the answer is what follows, without commas."""
    solution = str(row["answer"])
    return {**row, "solution": solution, "answer": solution.rpartition("####")[2].strip().replace(",", "")}


def without_dollars(row: Row) -> Row:
    return {**row, "answer": str(row["answer"]).replace("$", "").strip()}
