"""`simplerl grade`: verdicts on the rows of a file, and which of them a person should look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simplerl.cli.console import say, say_error, say_json
from simplerl.cli.verifier_options import VerifierName, VerifierSettings, evaluation_verifier
from simplerl.errors import ConfigError, DataError
from simplerl.formatting import table

if TYPE_CHECKING:
    from simplerl.cli.grading import Row
    from simplerl.types import Verdict
    from simplerl.verifiers.base import Verifier
    from simplerl.verifiers.math import MathVerifier


File = Annotated[Path | None, typer.Argument(help="JSON lines (.jsonl, also .gz); with --audit a run folder will do.")]
Pair = Annotated[
    tuple[str, str] | None, typer.Option("--equal", metavar="PRED GOLD", help="Compare two bare answers instead.")
]
Audit = Annotated[bool, typer.Option("--audit", help="List wrong verdicts that a looser comparison would call right.")]
ResponseKey = Annotated[str | None, typer.Option(help="Key of the response; without it response or pred.")]
AnswerKey = Annotated[str | None, typer.Option(help="Key of the gold answer; without it answer or gold.")]
Mode = Annotated[
    Literal["evaluation", "reward"] | None,
    typer.Option(help="reward: a box or nothing, as in training. Default: evaluation."),
]
Out = Annotated[Path | None, typer.Option(help="Write the verdict on each row to this file.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes for symbolic comparisons; 0 does without them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def grade(
    file: File = None,
    equal: Pair = None,
    audit: Audit = False,
    response_key: ResponseKey = None,
    answer_key: AnswerKey = None,
    mode: Mode = None,
    out: Out = None,
    workers: Workers = None,
    verifier: VerifierName = None,
    verifier_settings: VerifierSettings = None,
    as_json: Json = False,
) -> None:
    """Judge responses against gold answers.

    A row has a response and a gold answer; "kind": "answer" says that the response is a bare answer, "gold_kind":
    "solution" that the gold one has to be extracted. A label it carries ("correct" or "expected") is compared.
    """
    if (file is None) == (equal is None):
        raise ConfigError("name a file of rows, or two answers with --equal PRED GOLD")
    if out is not None and (audit or equal is not None):
        raise ConfigError("--out is for the verdicts on a file; use --json and write stdout to a file")
    only_math = {"--equal": equal, "--audit": audit or None, "--mode": mode, "--workers": workers}
    if verifier not in (None, "math") and (given := [name for name, value in only_math.items() if value is not None]):
        raise ConfigError(f"{', '.join(given)}: for the verifier math; {verifier} is set with --set verifier.KEY=VALUE")
    settings = {"mode": mode, "workers": workers}
    overrides = [f"verifier.{key}={value}" for key, value in settings.items() if value is not None]
    with _opened(verifier, [*overrides, *(verifier_settings or ())]) as opened:
        if equal is not None:
            _compare(_mathematical(opened), *equal, as_json)
        elif file is not None and audit:
            from simplerl.cli.audit import print_audit

            print_audit(_mathematical(opened), file, response_key, answer_key, as_json=as_json)
        elif file is not None:
            from simplerl.cli.grading import read_rows

            _grade(opened, read_rows(file, response_key, answer_key), file, out, as_json)


@contextmanager
def _opened(name: str | None, overrides: list[str]) -> Iterator[Verifier]:
    from simplerl.verifiers.base import build_verifier

    verifier = build_verifier(evaluation_verifier(name, overrides))
    try:
        yield verifier
    finally:
        verifier.close()


def _mathematical(verifier: Verifier) -> MathVerifier:
    from simplerl.verifiers.math import MathVerifier

    assert isinstance(verifier, MathVerifier)
    return verifier


# --- two answers ------------------------------------------------------------------------------------------------------


def _compare(verifier: MathVerifier, answer: str, gold: str, as_json: bool) -> None:
    verdict = verifier.submit_answer(answer, gold).result()
    if as_json:
        ms = round(verdict.seconds * 1000, 3)
        say_json({"verdict": verdict.label, "method": verdict.method, "extracted": verdict.extracted, "ms": ms})
    else:
        say(f"{verdict.label} ({verdict.method})")


# --- a file -----------------------------------------------------------------------------------------------------------


def _grade(verifier: Verifier, rows: Iterator[Row], file: Path, out: Path | None, as_json: bool) -> None:
    from simplerl.cli.grading import Summary, judged

    verifier.warm_up()
    summary = Summary()
    with _writer(out) as write:
        for row, verdict in judged(rows, verifier):
            summary.add(row, verdict)
            write(row, verdict)
        if not summary.rows:
            raise DataError(f"{file} holds no rows")
    told = summary.table()
    say_json(told) if as_json else say("\n".join(_lines(told)))
    if summary.errors:
        first = ", ".join(map(str, told["errors"]))
        say_error(f"{len(summary.errors):,} of {summary.rows:,} rows have no verdict (error); the first: {first}")


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[Row, Verdict], None]]:
    """Writes rows to a file that exists whole or not at all; without one, nowhere."""
    if out is None:
        yield lambda row, verdict: None
        return
    from simplerl.cli.grading import record
    from simplerl.storage import atomic

    with atomic.new_file(out) as temporary, open(temporary, "x", encoding="utf-8") as file:
        yield lambda row, verdict: print(json.dumps(record(row, verdict), ensure_ascii=False), file=file)


def _lines(told: dict[str, Any]) -> Iterator[str]:
    """The summary in words."""
    yield f"{told['rows']:,} rows"
    yield table([(label, f"{n:,}", f"{told['shares'][label]:.1%}") for label, n in told["verdicts"].items()], "  ")
    yield "methods"
    yield table([(method or "-", f"{n:,}") for method, n in told["methods"].items()], "  ")
    yield f"{told['ms_mean']:.3g} ms a verdict, 99 % within {told['ms_p99']:.3g} ms"
    yield f"{told['verdicts_per_second']:,.0f} verdicts a second"
    if agreement := told["agreement"]:
        yield f"{agreement['agree']:,} of {agreement['labelled']:,} agree with their label ({agreement['share']:.2%})"
        if agreement["differ"]:
            yield f"the first that do not: {', '.join(map(str, agreement['differ']))}"
