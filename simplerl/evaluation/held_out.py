"""Evaluation of the current policy on held-out problems, during training. It draws its own random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from simplerl.engines.base import Engine
from simplerl.rewards.base import Reward
from simplerl.rollouts.grade import generate_and_grade, make_requests
from simplerl.stats.intervals import wilson
from simplerl.stats.styles import style_shares
from simplerl.types import GradedRollout, Prompt, Sampling
from simplerl.verifiers.base import Verifier


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A benchmark's prompts, ready to be answered."""

    name: str
    prompts: Sequence[Prompt]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One row of evals.jsonl and the responses it counts."""

    row: dict[str, Any]
    graded: list[GradedRollout]


def evaluate(
    held_out: HeldOut,
    sampling: Sampling,
    engine: Engine,
    verifier: Verifier,
    reward: Reward,
    *,
    seed: int,
    step: int,
    progress: Callable[[GradedRollout], None] = lambda _: None,
) -> Evaluation:
    """Answers every problem once. The random numbers depend on the step, so that a mean over evaluations gains.

    `reward` is the one of training, with its shaping: an overlong penalty is by training's limit, not `sampling`'s.
    """
    requests = make_requests(held_out.prompts, sampling, seed, "eval", held_out.name, step)
    graded = generate_and_grade(engine, requests, verifier, reward, progress)
    return Evaluation(summary(held_out.name, step, sampling.temperature, graded), graded)


def summary(name: str, step: int, temperature: float, graded: Sequence[GradedRollout]) -> dict[str, Any]:
    """Accuracy with its Wilson 95 % interval, mean reward and length, and the styles' shares."""
    correct = sum(g.verdict.label == "correct" for g in graded)
    low, high = wilson(correct, len(graded))
    return {
        "step": step,
        "set": name,
        "temperature": temperature,
        "n": len(graded),
        "accuracy": correct / len(graded),
        "accuracy_low": low,
        "accuracy_high": high,
        "reward": fmean(g.reward for g in graded),
        "length": fmean(len(g.rollout.token_ids) for g in graded),
        **style_shares([g.rollout.text for g in graded]),
        "clip_ratio": fmean(g.rollout.finish_reason == "length" for g in graded),
    }
