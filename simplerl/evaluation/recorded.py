"""Responses that somebody recorded, graded and counted like an evaluation's own."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simplerl.config import PluginConfig
from simplerl.data.rows import read_table
from simplerl.errors import DataError
from simplerl.evaluation.folder import EvalFolder
from simplerl.rollouts.grade import results_in_order
from simplerl.stats.scores import score
from simplerl.types import Problem, Rollout, Verdict
from simplerl.verifiers.base import DEFAULT_VERIFIER, Verifier, build_verifier, evaluation_config, same_answer

Row = Mapping[str, Any]
RESPONSE = ("response", "text", "output", "completion", "pred")
GOLD = ("answer", "gold", "gt", "target")
SET = ("dataset", "benchmark", "set")
QUESTION = ("problem", "question", "prompt")


def grade_recorded(path: Path, out: Path, verifier_config: PluginConfig | None = None) -> dict[str, Any]:
    """Scores per data set (the rows' `dataset`, else one set of the file's name); responses and results go to `out`.

    Rows with the same problem (`problem_id`, else the question's text) are samples of it. `verifier_config` None: the
    default verifier in the mode `evaluation`. Raises `DataError`.
    """
    given = read_table(path)
    if not given:
        raise DataError(f"{path} holds no row")
    config = verifier_config or evaluation_config(DEFAULT_VERIFIER)
    verifier = build_verifier(config)
    try:
        rows = graded(given, verifier, path)
    finally:
        verifier.close()
    folder = EvalFolder(out)
    plan = {"model": str(path), "verifier": config.name, "parts": [], "recorded": True}
    results: dict[str, Any] = {"plan": plan, "benchmarks": {}}
    for name, part in rows.items():
        folder.finish(name, part)
        results["benchmarks"][name] = score(part, same_answer(config.name)).as_dict()
    folder.write_results(results)
    return results


def graded(given: Sequence[Row], verifier: Verifier, path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows as `simplerl.storage.records.EVAL_COLUMNS`, by data set, in the file's order."""
    response, gold = key_of(given, RESPONSE, path), key_of(given, GOLD, path)
    several = len({row.get("model") for row in given}) > 1
    seen: Counter[tuple[str, str]] = Counter()
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    recorded = ((row, Problem("", question_of(row), text(row, gold))) for row in given)
    tasks = ((row, verifier.submit(each, Rollout.recorded(each, text(row, response)))) for row, each in recorded)
    for number, (row, verdict) in enumerate(results_in_order(tasks, max_pending=1024)):
        part = part_of(row, path, several)
        problem = str(row.get("problem_id") or question_of(row) or row.get("id") or number)
        seen[part, problem] += 1
        parts[part].append(
            as_row(row, part, problem, seen[part, problem] - 1, text(row, response), text(row, gold), verdict)
        )
    return parts


def part_of(row: Row, path: Path, several: bool) -> str:
    """The data set, and the model where the file holds several."""
    name = next((str(row[key]) for key in SET if row.get(key)), path.name.partition(".")[0])
    name = f"{name} {row.get('model') or 'unstated'}" if several else name
    return re.sub(r"[^\w .@+-]", "_", name)[:100]


def key_of(given: Sequence[Row], names: Sequence[str], path: Path) -> str:
    """The first of the names that every row has."""
    found = next((name for name in names if all(name in row for row in given)), None)
    if found is None:
        raise DataError(f"{path}: no key of {', '.join(names)} is in every row; the first has {', '.join(given[0])}")
    return found


def text(row: Row, key: str) -> str:
    return "" if row[key] is None else str(row[key])


def question_of(row: Row) -> str:
    return next((str(row[key]) for key in QUESTION if row.get(key)), "")


def as_row(
    row: Row, part: str, problem: str, sample: int, response: str, gold: str, verdict: Verdict
) -> dict[str, Any]:
    level = row.get("level")
    return {
        "step": 0,
        "problem_id": problem,
        "sample_index": sample,
        "question": question_of(row),
        "answer": gold,
        "text": response,
        "response_tokens": row.get("response_tokens"),
        "finish_reason": row.get("finish_reason"),
        "extracted": verdict.extracted,
        "verdict": verdict.label,
        "method": verdict.method,
        "reward": float(verdict.label == "correct"),
        "level": level if isinstance(level, int) else None,
        "subject": row.get("subject"),
        "set": part,
    }
