"""What a reward is: a graded response in, one number out, placed on the response's last token."""

from __future__ import annotations

from typing import Protocol

from simplerl.config import PluginConfig
from simplerl.types import Rollout, Verdict


class RewardConfig(PluginConfig):
    """Settings every reward has."""


class Reward(Protocol):
    """A module with a function `build(config) -> Reward` is a reward plug-in; a plain function will do."""

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float: ...
