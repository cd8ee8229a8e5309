"""`simplerl grade --audit`: wrong verdicts that a looser comparison would call right, for a person to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from simplerl.cli.console import say, say_json
from simplerl.cli.grading import LABELS, judged, read_rows
from simplerl.errors import DataError
from simplerl.storage.records import RunFolder
from simplerl.types import VerdictLabel
from simplerl.verifiers.math import MathVerifier
from simplerl.verifiers.math.audit import Finding, Judged, audit

CHUNK = 4096
"""Responses held at a time."""

COLUMNS = ("step", "problem_id", "sample_index", "answer", "text", "extracted", "verdict")
Seen = Iterator[tuple[VerdictLabel, Judged]]


def print_audit(
    verifier: MathVerifier, source: Path, response_key: str | None, answer_key: str | None, *, as_json: bool
) -> None:
    """Judges the rows of a file, or takes the verdicts a run has recorded, and lists what is worth a look."""
    seen = _recorded(source) if source.is_dir() else _fresh(verifier, source, response_key, answer_key)
    verdicts: Counter[VerdictLabel] = Counter()
    findings: list[Finding] = []
    while chunk := list(islice(seen, CHUNK)):
        verdicts.update(label for label, _ in chunk)
        wrong = [each for label, each in chunk if label in ("wrong", "no_answer")]
        findings += audit(wrong, verifier.pool.submit if verifier.pool else None)
    if not verdicts:
        raise DataError(f"{source} holds no responses")
    totals = _totals(verdicts, findings)
    say_json(totals) if as_json else _print(totals)


def _fresh(verifier: MathVerifier, file: Path, response_key: str | None, answer_key: str | None) -> Seen:
    for row, verdict in judged(read_rows(file, response_key, answer_key), verifier):
        gold = verifier.extract_gold(row.gold) if row.from_solution else row.gold
        yield verdict.label, Judged(row.id, verdict.extracted, gold, "" if row.bare else row.text)


def _recorded(folder: Path) -> Seen:
    """The training responses of a run, with the verdicts they were trained on."""
    import pyarrow.parquet

    for _, path in RunFolder(folder).rollout_files():
        for row in pyarrow.parquet.read_table(path, columns=list(COLUMNS)).to_pylist():
            name = f"step {row['step']}, {row['problem_id']}, sample {row['sample_index']}"
            yield row["verdict"], Judged(name, row["extracted"], row["answer"], row["text"])


def _totals(verdicts: Counter[VerdictLabel], findings: list[Finding]) -> dict[str, Any]:
    """`accuracy_at_most` is what the accuracy would be if every finding were a false negative."""
    pairs = Counter((each.kind, each.rule, each.extracted, each.gold) for each in findings)
    first = {(each.kind, each.rule, each.extracted, each.gold): each.id for each in reversed(findings)}
    keys = ("kind", "rule", "extracted", "gold")
    return {
        "verdicts": {label: verdicts[label] for label in LABELS},
        "findings": len(findings),
        "accuracy": verdicts["correct"] / verdicts.total(),
        "accuracy_at_most": (verdicts["correct"] + len(findings)) / verdicts.total(),
        "kinds": dict(Counter(each.kind for each in findings).most_common()),
        "pairs": [
            {**dict(zip(keys, pair, strict=True)), "count": n, "first": first[pair]} for pair, n in pairs.most_common()
        ],
    }


def _print(totals: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    say(", ".join(f"{n:,} {label}" for label, n in totals["verdicts"].items()))
    say(
        f"{totals['findings']:,} would be right by a looser comparison; "
        f"if they all were, the accuracy would be {totals['accuracy_at_most']:.2%} instead of {totals['accuracy']:.2%}"
    )
    columns = ("kind", "rule", "count", "extracted", "gold", "first")
    shown = Table(*columns, box=None, pad_edge=False)
    for pair in sorted(totals["pairs"], key=lambda pair: pair["kind"]):
        # Not as a string: rich would read [a,b] as markup.
        shown.add_row(*(Text("" if pair[key] is None else str(pair[key]), overflow="fold") for key in columns))
    if totals["pairs"]:
        Console().print(shown)
