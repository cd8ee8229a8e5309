"""Published tables of SimpleRL-Zero and SimpleRL-Zoo: accuracies only, without responses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from simplerl.errors import DataError
from simplerl.formatting import did_you_mean
from simplerl.stats.intervals import Estimate, share


@dataclass(frozen=True)
class PublishedScore:
    """An accuracy, 0 to 1, as printed, and how it was measured."""

    accuracy: float
    problems: int
    settings: Mapping[str, Any]
    """template, temperature, top_p, max_tokens, samples: settings of the whole table."""

    @property
    def samples(self) -> int:
        return self.settings["samples"]

    @property
    def estimate(self) -> Estimate:
        """With Wilson's interval over the problems. Several samples count as one: their spread was not published."""
        return share(self.accuracy * self.problems, self.problems)


@dataclass(frozen=True)
class Published:
    """One row of a table."""

    name: str
    title: str
    table: str
    suite: str
    scores: Mapping[str, PublishedScore]
    """Accuracies by benchmark, without those left blank."""

    average: tuple[str, ...]
    """Benchmarks in the table's average."""

    printed_average: float | None
    note: str = ""


def published(name: str) -> Published:
    """The row of this name. Raises `DataError` with the nearest names."""
    rows = published_rows()
    if name not in rows:
        hint = did_you_mean(name, rows, most=3, cutoff=0.4, show=str)
        raise DataError(f"no published row {name!r}{hint} There are {', '.join(rows)}")
    return rows[name]


@lru_cache(maxsize=1)
def published_rows() -> dict[str, Published]:
    """Every row by name, in the order of the tables."""
    text = (resources.files("simplerl.report") / "published.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return {row.name: row for table in data["tables"].values() for row in _rows(table, data["problems"])}


def suite_average(suite: str | None) -> tuple[str, ...]:
    """Benchmarks in a published suite's average; empty for other suites."""
    return next((row.average for row in published_rows().values() if row.suite == suite), ())


def _rows(table: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[Published]:
    for name, row in table["rows"].items():
        values = dict(zip(table["benchmarks"], row["values"], strict=True))
        problems = {**sizes, **row.get("problems", {})}
        yield Published(
            name=name,
            title=row["title"],
            table=table["title"],
            suite=table["suite"],
            scores={
                benchmark: PublishedScore(round(value / 100, 6), problems[benchmark], _settings(table, benchmark))
                for benchmark, value in values.items()
                if value != "-"
            },
            average=tuple(table["average"]),
            printed_average=round(row["average"] / 100, 6) if "average" in row else None,
            note=row.get("note", ""),
        )


def _settings(table: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    return table["settings"] | table.get("parts", {}).get(benchmark, {})
