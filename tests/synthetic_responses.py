"""Adds made-up responses to the synthetic run folders: training steps, sampled evaluations, and hostile text."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

HOSTILE_TEXTS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script><!--",
    "<img src=x onerror='window.hacked = 1'> <svg onload='window.hacked = 1'>",
    "line\u2028separator\u2029 and \x00 \x1b[31m and \u202edesrever",
    r"unbalanced $\frac{1}{ and \( \left( x \) and \[ {{{{ \] and $x^{$",
    r"$\href{javascript:window.hacked=1}{x}$ $\def\a{\a\a}\a$ $\class{a}{b}$ \(\includegraphics{http://x/y.png}\)",
    "$" + "{" * 900 + "}" * 90 + "$",
    "long " * 20_000,
    "{{ 7*7 }} {% raw %} ${7*7}",
)
WORDS = (
    "we", "have", "therefore", "the", "sum", "of", "all", "roots", "is", "given", "by", "so", "that", "it", "follows",
    "hence", "let", "us", "consider", "triangle", "area", "substituting", "into", "equation", "gives", "and", "then",
    "both", "sides", "divided", "multiply", "subtract", "prime", "number", "modulo", "remainder",
)  # fmt: skip


def response(problem: str, *, verdict: str = "correct", **values: Any) -> dict[str, Any]:
    """One row of a Parquet file, with everything a reader asks for."""
    row = {"step": 1, "problem_id": problem, "sample_index": 0, "prompt": f"Question: {problem}", "question": problem}
    row |= {"answer": "1", "text": r"It is \boxed{1}.", "prompt_tokens": 9, "response_tokens": 7}
    row |= {"finish_reason": "stop", "extracted": "1", "verdict": verdict, "method": "box, value", "reward": 1.0}
    row |= {"advantage_mean": 0.0, "policy_version": 0, "level": 3, "subject": "algebra"}
    return row | values


def write_rollouts(folder: Path, step: int, rows: Iterable[dict[str, Any]]) -> Path:
    path = folder / "rollouts" / f"step-{step:06d}.parquet"
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([row | {"step": step} for row in rows]), path, compression="zstd")
    return path


def write_eval(folder: Path, step: int, name: str, temperature: float, rows: Iterable[dict[str, Any]]) -> Path:
    path = folder / "evals" / f"step-{step:06d}-{name}-t{temperature:g}.parquet"
    path.parent.mkdir(exist_ok=True)
    marked = [row | {"step": step, "set": name, "temperature": temperature} for row in rows]
    parquet.write_table(pa.Table.from_pylist(marked), path, compression="zstd")
    return path


def prose(rng: random.Random, tokens: int) -> str:
    """Mathematics-like text, about as hard to compress as the real kind."""
    parts: list[str] = []
    while len(parts) < tokens:
        a, b = rng.randrange(2, 999), rng.randrange(2, 99)
        kind = rng.random()
        if kind < 0.2:
            parts.append(rf"$\frac{{{a}}}{{{b}}} = x_{{{b}}}^{{{a % 7}}}$")
        elif kind < 0.35:
            parts.append(f"{a}*{b}={a * b}.")
        else:
            parts += rng.choices(WORDS, k=6)
    return " ".join(parts)
