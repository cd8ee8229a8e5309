"""1 for a correct answer, else 0, as in the v1 (SimpleRL-Zoo) recipes: the format costs nothing."""

from __future__ import annotations

from typing import Literal

from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig):
    """No settings but the shaping."""

    name: Literal["accuracy"] = "accuracy"


def build(config: Config) -> Reward:
    def reward(rollout: Rollout, verdict: Verdict) -> float:
        return float(verdict.label == "correct")

    return reward
