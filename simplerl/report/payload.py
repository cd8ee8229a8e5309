"""The response browser's data as one compressed block inside a page."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import orjson

from simplerl.report.examples import MARKS
from simplerl.report.plain_text import visible
from simplerl.report.responses import TRAINING, Response

SHORT = 4000
Name = TypeVar("Name")


class _Index(Generic[Name]):
    """Indices of values, in order of first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[Name, int] = {}

    def __call__(self, name: Name) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def __iter__(self) -> Any:
        return iter(self.numbers)


def pack(responses: Sequence[Response], runs: Iterable[str]) -> str:
    """JSON, gzip, base64; equal responses give equal text."""
    return b64encode(gzip.compress(orjson.dumps(table(responses, runs)), 6, mtime=0)).decode()


def table(responses: Sequence[Response], runs: Iterable[str]) -> dict[str, Any]:
    """Columns of responses; repeated names are indices into lists."""
    problems: dict[tuple[str, str], int] = {}
    descriptions: list[dict[str, Any]] = []
    samplings, methods = _Index[str](), _Index[str]()
    rows: list[dict[str, Any]] = []
    # responses to one problem are neighbours: they are alike, which compresses well
    for response in sorted(responses, key=_place):
        key = response.source, response.row["problem_id"]
        if key not in problems:
            problems[key] = len(problems)
            descriptions.append(_problem(response))
        rows.append(_response(response, problems[key], samplings, methods))
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return {
        "runs": list(runs),
        "samplings": list(samplings),
        "methods": list(methods),
        "problems": descriptions,
        "rows": columns,
        "marks": {name: rule.replace(r"\Z", "$") for name, rule in MARKS.items()},
    }


def _place(response: Response) -> tuple[bool, str, str]:
    return response.source == TRAINING, response.source, response.row["problem_id"]


def _problem(response: Response) -> dict[str, Any]:
    row = response.row
    facts = {"source": response.source, "id": row["problem_id"], "level": row["level"], "subject": row["subject"]}
    return facts | {name: visible(row[name] or "", SHORT) for name in ("question", "answer")}


def _response(response: Response, problem: int, samplings: _Index[str], methods: _Index[str]) -> dict[str, Any]:
    row = response.row
    return {
        "problem": problem,
        "run": response.run,
        "sampling": samplings(response.sampling),
        "step": response.step,
        "sample": row["sample_index"],
        "verdict": row["verdict"],
        "truncated": int(row["finish_reason"] == "length"),
        "tokens": row["response_tokens"],
        "reward": row["reward"],
        "extracted": row["extracted"],
        "method": methods(row["method"] or ""),
        "text": row["text"],
    }
