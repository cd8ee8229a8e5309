"""The published rule: +1 a correct boxed answer, -0.5 a wrong one, -1 no boxed answer."""

from __future__ import annotations

from typing import Literal

from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig):
    """The three numbers; the defaults are the publication's."""

    name: Literal["simplerl"] = "simplerl"
    correct: float = 1.0
    wrong: float = -0.5
    no_answer: float = -1.0
    error: float = -0.5
    """A verdict the verifier could not reach; the default counts it as wrong. Errors are counted apart."""


def build(config: Config) -> Reward:
    def reward(rollout: Rollout, verdict: Verdict) -> float:
        return float(getattr(config, verdict.label))

    return reward
