"""1 for a correct answer, 0 otherwise, as in the v1 (SimpleRL-Zoo) recipes: no price on the format."""

from __future__ import annotations

from typing import Literal

from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig):
    """Nothing to set."""

    name: Literal["accuracy"] = "accuracy"


def build(config: Config) -> Reward:
    def reward(rollout: Rollout, verdict: Verdict) -> float:
        return float(verdict.label == "correct")

    return reward
