"""Rewards: a graded response in, one number out, placed on the response's last token.

A new reward is one new file with a `Config` (extends `RewardConfig`) and a `build(config) -> Reward`. A user's own file
may define a plain function `reward(rollout, verdict) -> float` instead; its settings are `RewardConfig`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from simplerl.config import PluginConfig
from simplerl.errors import ConfigError
from simplerl.types import Rollout, Verdict

if TYPE_CHECKING:
    from simplerl.config import Recipe, SFTRecipe


class RewardConfig(PluginConfig):
    """Settings of every reward: the shaping of its number (`simplerl.rewards.shaping`).

    The shaped reward is the one that is recorded, trained on, and reported by evaluations during training.
    """

    clip: float | None = Field(default=None, gt=0)
    """Bound of the reward, in its own unit: it is limited to [-clip, clip], after the overlong penalty. None (default):
    not limited. Set it for rewards that may be extreme, such as a reward model's; SimpleRL-Zero was published with 10.
    """

    overlong_buffer: int = Field(default=0, ge=0)
    """DAPO's soft overlong penalty: over the last `overlong_buffer` response tokens before the limit
    (`rollout.max_tokens`, which must be larger) the reward falls linearly. In tokens; 0 (default): no penalty. Set it
    if long responses are truncated (`length/clip_ratio`); DAPO has 4,096 of 20,480.
    """

    overlong_penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the reward of a response at the limit, in the reward's unit. Default 1, as in DAPO, whose rewards
    are 1 and -1. Scale it with the rewards. No effect if `overlong_buffer` is 0.
    """

    def check_recipe(self, recipe: Recipe | SFTRecipe) -> None:
        """Raise `ConfigError` if the overlong buffer leaves no length without a penalty."""
        limit = recipe.response_limit
        if self.overlong_buffer >= limit:
            setting = "rollout.max_tokens" if recipe.kind == "train" else "train.max_response_tokens"
            raise ConfigError(
                f"reward.overlong_buffer={self.overlong_buffer} must be below {setting}={limit}; "
                "a fifth of it is usual, 0 turns the penalty off"
            )


class Reward(Protocol):
    """Any callable with this signature.

    Two attributes are optional. `concurrency`: how many threads may call it at once, 1 without it. `close()`: called
    once at the end of a run.
    """

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float: ...
