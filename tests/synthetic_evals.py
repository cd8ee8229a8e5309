"""Writes eval folders with made-up responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from simplerl.storage.files import write_parquet
from simplerl.storage.records import EVAL_COLUMNS

SAMPLING = {"n": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": 3000}
Verdicts = Sequence[Sequence[str]]
"""One text per problem and sample: a verdict, or its first letter."""

LABELS = {"c": "correct", "w": "wrong", "n": "no_answer", "e": "error"}


def response(problem: int, sample: int, verdict: str = "correct", name: str = "toy", **values: Any) -> dict[str, Any]:
    """A row of `EVAL_COLUMNS`: problem 7 asks for 7, and a wrong answer is one too many."""
    label = LABELS.get(verdict, verdict)
    answer = str(problem if label == "correct" else problem + 1)
    extracted = None if label == "no_answer" else answer
    row = {"problem_id": f"{name}/{problem:04d}", "sample_index": sample, "question": f"What is {problem}?"}
    row |= {"answer": str(problem), "text": f"So \\boxed{{{answer}}}." if extracted else "I do not know."}
    row |= {"extracted": extracted, "verdict": label, "response_tokens": 10, "finish_reason": "stop"}
    row |= {"set": name, "temperature": 0.0, "step": 0, "level": problem % 5 + 1, "subject": "algebra"}
    return row | values


def rows_of(verdicts: Verdicts, name: str = "toy") -> list[dict[str, Any]]:
    """["cw", "cc"] is two problems with two responses each."""
    return [
        response(problem, sample, verdict, name)
        for problem, samples in enumerate(verdicts)
        for sample, verdict in enumerate(samples)
    ]


def write_eval(
    folder: Path, benchmarks: Mapping[str, Verdicts], *, finished: bool = True, parts: int = 1, **settings: Any
) -> Path:
    """An eval folder; `parts` files per benchmark. `settings` go to `eval.toml`, those of `sampling` to its table."""
    sampling = {key: settings.pop(key, value) for key, value in SAMPLING.items()}
    plan = {"model": "toy-model", "model_hash": "0" * 32, "engine": "embedded", "seed": 0, "template": "qwen-boxed"}
    plan |= {"benchmarks": list(benchmarks), "trained": False, **settings, "sampling": sampling}
    (folder / "responses").mkdir(parents=True)
    (folder / "eval.toml").write_text(tomli_w.dumps(plan))
    (folder / "environment.json").write_text(json.dumps([{"simplerl": "0.1.0"}]))
    for name, verdicts in benchmarks.items():
        rows = rows_of(verdicts, name)
        for part in range(parts):
            write_parquet(folder / "responses" / name / f"part-{part:04d}.parquet", rows[part::parts], EVAL_COLUMNS)
    if finished:
        (folder / "results.json").write_text("{}")
    return folder
