"""How the verifier judged a run: by which method, with which errors, and what looser comparisons would accept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from simplerl.report.response_files import ResponseFile, draw, eval_files, spread_out, training_files
from simplerl.report.run_data import RunData
from simplerl.verifiers.math.audit import Finding, Judged, audit

LABELS = ("correct", "wrong", "no_answer", "error")
NOT_RIGHT = ("wrong", "no_answer")
AUDITED = "math"
"""The verifier whose answers the audit can compare."""
MOST_FILES = 32
MOST_JUDGED = 60
"""Training steps looked at, and wrong verdicts of each and of each set of the last evaluation."""
COLUMNS = ("problem_id", "sample_index", "answer", "text", "extracted", "verdict")

Verdicts = Counter[tuple[str, str]]


class MethodRow(NamedTuple):
    """Verdicts by one method: counts in the order of `LABELS`."""

    method: str
    counts: tuple[int, ...]


class Pair(NamedTuple):
    """An answer that was not accepted for a gold answer, how often, and where first."""

    kind: str
    rule: str
    extracted: str | None
    gold: str
    times: int
    first: str


class Audit(NamedTuple):
    """What a sample of wrong verdicts holds that a person should look at, the most frequent first.

    `left_out`: verifiers of the runs that are not audited, because the audit compares mathematical answers. None of the
    runs is audited if `possible` is false.
    """

    judged: int
    found: int
    pairs: list[Pair]
    left_out: list[str]
    possible: bool


def method_rows(runs: Sequence[RunData]) -> list[MethodRow]:
    """Verdicts of all training and evaluation responses by method, the most used first."""
    verdicts: Verdicts = Counter()
    for run in runs:
        for file in (*training_files(run), *eval_files(run)):
            verdicts.update(_verdicts(file))
    methods: Counter[str] = Counter()
    for (method, _), count in verdicts.items():
        methods[method] += count
    return [MethodRow(name, tuple(verdicts[name, label] for label in LABELS)) for name, _ in methods.most_common()]


@lru_cache(maxsize=8192)
def _verdicts(file: ResponseFile) -> Verdicts:
    groups = file.read(("method", "verdict")).group_by(["method", "verdict"]).aggregate([([], "count_all")])
    columns = (groups[name].to_pylist() for name in ("method", "verdict", "count_all"))
    return Counter({(method or "", verdict): count for method, verdict, count in zip(*columns, strict=True)})


def audit_sample(runs: Sequence[RunData]) -> Audit:
    """Audits wrong verdicts of mathematics: by lot, of some training steps of each run and of its last evaluation."""
    judged, findings = 0, []
    mathematical = [run for run in runs if run.verifier == AUDITED]
    for run in mathematical:
        where = f"{run.name}, " if len(runs) > 1 else ""
        for file in _audited_files(run):
            count, found = _audited(file)
            judged += count
            findings += [(where, finding) for finding in found]
    left_out = sorted({run.verifier for run in runs} - {AUDITED})
    return Audit(judged, len(findings), _pairs(findings), left_out, bool(mathematical))


def _audited_files(run: RunData) -> list[ResponseFile]:
    evaluations = eval_files(run)
    last = [file for file in evaluations if file.step == evaluations[-1].step]
    return [*spread_out(training_files(run), MOST_FILES), *last]


@lru_cache(maxsize=1024)
def _audited(file: ResponseFile) -> tuple[int, list[Finding]]:
    import pyarrow.compute as compute

    table = file.read(COLUMNS)
    rows = table.filter(compute.field("verdict").isin(NOT_RIGHT)).to_pylist()
    rows.sort(key=lambda row: draw(row["problem_id"], row["sample_index"]))
    chosen = [
        Judged(f"step {file.step}, {row['problem_id']}", row["extracted"], row["answer"], row["text"])
        for row in rows[:MOST_JUDGED]
    ]
    return len(chosen), audit(chosen)


def _pairs(findings: Sequence[tuple[str, Finding]]) -> list[Pair]:
    pairs = [(each.kind, each.rule, each.extracted, each.gold) for _, each in findings]
    first = {pair: f"{where}{each.id}" for pair, (where, each) in zip(reversed(pairs), reversed(findings), strict=True)}
    return [Pair(*pair, count, first[pair]) for pair, count in Counter(pairs).most_common()]
