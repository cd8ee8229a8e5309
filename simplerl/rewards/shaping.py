"""Shaping: what is added to a reward or bounds it, whatever the reward. The result is recorded and trained on."""

from __future__ import annotations

from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


def overlong_share(tokens: int, limit: int, buffer: int) -> float:
    """Share of the overlong penalty for a response of `tokens` tokens, from 0 to 1 (DAPO, arXiv:2503.14476, eq. 13).

    0 up to `limit - buffer` tokens, then (tokens - (limit - buffer)) / buffer, and 1 at `limit` and above. The paper
    writes the negative of it, as a reward. A `buffer` of 0 gives 0.
    """
    if buffer == 0:
        return 0.0
    return min(max(tokens - (limit - buffer), 0), buffer) / buffer


def clipped(reward: float, bound: float | None) -> float:
    """`reward` limited to [-bound, bound], as OpenRLHF does in SimpleRL-Zero's code. None: not limited."""
    # Comparisons, not min and max: min(10.0, nan) is 10.0, and a NaN must reach the check that refuses the update.
    if bound is not None and reward > bound:
        return bound
    if bound is not None and reward < -bound:
        return -bound
    return reward


def shape(reward: Reward, config: RewardConfig, response_limit: int) -> Reward:
    """`reward` with the shaping of `config`; `reward` itself if the settings shape nothing.

    `response_limit` is the longest response allowed in training, in tokens.
    """
    if config.clip is None and config.overlong_buffer == 0:
        return reward
    return ShapedReward(reward, config, response_limit)


class ShapedReward:
    """A reward minus the overlong penalty, then clipped: the bound holds for the number that is trained on.

    Keeps the `concurrency` and `close` of the reward inside.
    """

    def __init__(self, reward: Reward, config: RewardConfig, response_limit: int) -> None:
        self.concurrency: int = getattr(reward, "concurrency", 1)
        self._reward = reward
        self._config = config
        self._response_limit = response_limit

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float:
        config = self._config
        share = overlong_share(len(rollout.token_ids), self._response_limit, config.overlong_buffer)
        return clipped(self._reward(rollout, verdict) - config.overlong_penalty * share, config.clip)

    def close(self) -> None:
        getattr(self._reward, "close", lambda: None)()
