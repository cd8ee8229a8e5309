"""The reward of responses of a fixed length: whether the first token is odd, so that a random model gets both."""

from __future__ import annotations

from simplerl.types import Rollout, Verdict


def reward(rollout: Rollout, verdict: Verdict) -> float:
    return float(rollout.token_ids[0] % 2)
