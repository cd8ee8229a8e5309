"""Metrics of a step, under stable names; docs/metrics.md describes each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from simplerl.batch.batch import ScoredBatch, TrainBatch, row_sum
from simplerl.losses.losses import GlobalCounts, difference_stats
from simplerl.stats.styles import style_shares
from simplerl.storage.records import rollout_row
from simplerl.types import GradedRollout, Metrics

VERDICTS = ("correct", "wrong", "no_answer", "error")


def share_of_true(flags: Iterable[bool]) -> float:
    """Share of the flags that are True."""
    return fmean(map(float, flags))


def rollout_metrics(graded: Sequence[GradedRollout]) -> Metrics:
    """Reward, verdicts, lengths and styles of a step's rollouts."""
    metrics = {
        "reward/mean": fmean(g.reward for g in graded),
        "reward/accuracy": share_of_true(g.verdict.label == "correct" for g in graded),
        "tokens/prompt": float(sum(len(g.rollout.prompt.token_ids) for g in graded)),
        "tokens/response": float(sum(len(g.rollout.token_ids) for g in graded)),
    }
    metrics |= {f"verdict/{label}": share_of_true(g.verdict.label == label for g in graded) for label in VERDICTS}
    metrics |= {f"style/{name}": value for name, value in style_shares([g.rollout.text for g in graded]).items()}
    return metrics | length_metrics(graded)


def response_rows(step: int, groups: Sequence[Sequence[GradedRollout]], batch: TrainBatch) -> list[dict[str, Any]]:
    """One row per response of a step, see `rollout_row`; `advantage_mean` is over its tokens."""
    means = (row_sum(batch.advantages, batch.response_lengths) / batch.response_lengths).tolist()
    numbered = [(index, graded) for group in groups for index, graded in enumerate(group)]
    return [rollout_row(step, graded, index, mean) for (index, graded), mean in zip(numbered, means, strict=True)]


def length_metrics(graded: Sequence[GradedRollout]) -> Metrics:
    """Mean response tokens of all, correct, wrong and truncated responses. A kind without responses has no metric."""
    kinds = {
        "mean": list(graded),
        "correct": [g for g in graded if g.verdict.label == "correct"],
        "wrong": [g for g in graded if g.verdict.label != "correct"],
        "truncated": [g for g in graded if g.rollout.finish_reason == "length"],
    }
    metrics = {f"length/{kind}": fmean(len(g.rollout.token_ids) for g in some) for kind, some in kinds.items() if some}
    metrics["length/clip_ratio"] = len(kinds["truncated"]) / len(graded)
    return metrics


def score_metrics(batch: ScoredBatch) -> Metrics:
    """Log-prob differences: engine vs learner, learner vs reference.

    Empty if scoring was skipped; then the step's only update gives them.
    """
    if batch.old_logprobs is None:
        return {}
    stats = difference_stats(
        batch.old_logprobs,
        batch.sampled_logprobs,
        batch.ref_logprobs,
        GlobalCounts(len(batch), len(batch.sampled_logprobs)),
    )
    return {name: value.item() for name, value in stats.items()}


def merge_metrics(updates: Sequence[Metrics]) -> Metrics:
    """Merge the metrics of several updates: the largest value of names that end in /max, the mean of others."""
    names = {name for update in updates for name in update}
    return {name: (max if name.endswith("/max") else fmean)([u[name] for u in updates if name in u]) for name in names}
