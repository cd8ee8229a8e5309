"""SimpleRL-Zero's published rule: +1 for a correct boxed answer, -0.5 for a wrong one, -1 without a boxed answer."""

from __future__ import annotations

from typing import Literal

from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig):
    """The reward of each verdict; defaults as published."""

    name: Literal["simplerl"] = "simplerl"

    correct: float = 1.0
    """Reward of a correct boxed answer. Default 1."""

    wrong: float = -0.5
    """Reward of a wrong boxed answer. Default -0.5: better than none, so that models box an answer."""

    no_answer: float = -1.0
    """Reward of a response without a boxed answer. Default -1. Raise it to `wrong` if the format should not matter."""

    error: float = -0.5
    """Reward of a response the verifier could not judge (a crash, a time-out). Default -0.5, as a wrong answer. Errors
    are counted in `verdict/error`."""


def build(config: Config) -> Reward:
    def reward(rollout: Rollout, verdict: Verdict) -> float:
        return float(getattr(config, verdict.label))

    return reward
