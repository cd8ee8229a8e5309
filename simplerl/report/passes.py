"""pass@k across checkpoints, from verdicts of evaluations with several responses per problem."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from statistics import fmean

import numpy as np

from simplerl.report.response_files import ResponseFile, eval_files
from simplerl.report.run_data import EvalKey, RunData, Series
from simplerl.stats.scores import pass_at_k

MOST_LINES = 5

Counts = dict[EvalKey, list[tuple[int, int]]]


def pass_curves(run: RunData) -> dict[EvalKey, dict[int, Series]]:
    """pass@k against the step for k = 1, 2, 4, ..., of every set that was sampled more than once per problem."""
    points: dict[EvalKey, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for file in eval_files(run):
        for key, counts in _counts(file).items():
            for k in _sizes(min(n for n, _ in counts)):
                points[key][k].append((file.step, fmean(pass_at_k(n, c, k) for n, c in counts)))
    return {
        key: {k: _series(pairs) for k, pairs in curves.items()} for key, curves in points.items() if len(curves) > 1
    }


def _sizes(samples: int) -> list[int]:
    sizes = [2**i for i in range(samples.bit_length())]
    return sizes[:: -(-len(sizes) // MOST_LINES)]


def _series(pairs: list[tuple[int, float]]) -> Series:
    steps, values = np.array(sorted(pairs), dtype=float).T
    return Series(steps, values)


@lru_cache(maxsize=4096)
def _counts(file: ResponseFile) -> Counts:
    """Responses and correct responses of each problem."""
    table = file.read(("set", "temperature", "problem_id", "verdict"))
    columns = (table[name].to_pylist() for name in ("set", "temperature", "problem_id", "verdict"))
    found: dict[EvalKey, dict[str, tuple[int, int]]] = defaultdict(dict)
    for name, temperature, problem, verdict in zip(*columns, strict=True):
        problems = found[EvalKey(name, temperature)]
        n, correct = problems.get(problem, (0, 0))
        problems[problem] = n + 1, correct + (verdict == "correct")
    return {key: list(problems.values()) for key, problems in found.items()}
