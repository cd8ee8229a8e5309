"""What a step records of its responses, worked by hand."""

from __future__ import annotations

import pytest
import torch

from simplerl.batch.batch import ScoredBatch, TrainBatch, collate
from simplerl.train.metrics import response_rows
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict

pytestmark = pytest.mark.unit


def graded(problem: str, tokens: int, reward: float) -> GradedRollout:
    prompt = Prompt(Problem(problem, "?", "7"), "?", (1,))
    return GradedRollout(
        Rollout.single_turn("r", prompt, (2,) * tokens, (-1.0,) * tokens, "", "stop", 0), Verdict("wrong"), reward
    )


def test_a_response_has_the_mean_advantage_of_its_tokens() -> None:
    groups = [[graded("a", 2, 1.0), graded("a", 1, 0.5)], [graded("b", 3, 0.0)]]
    scored = collate(groups).extend(ScoredBatch, old_logprobs=None, ref_logprobs=None, values=None)
    advantages = torch.tensor([1.0, 2.0, -4.0, 3.0, 0.0, 6.0])
    rows = response_rows(7, groups, scored.extend(TrainBatch, advantages=advantages, returns=None))
    assert [row["advantage_mean"] for row in rows] == [1.5, -4, 3]
    assert [(row["problem_id"], row["sample_index"], row["reward"]) for row in rows] == [
        ("a", 0, 1.0),
        ("a", 1, 0.5),
        ("b", 0, 0.0),
    ]
    assert {row["step"] for row in rows} == {7}
