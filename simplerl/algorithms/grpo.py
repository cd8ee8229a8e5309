"""Group-relative policy optimisation (arXiv:2402.03300), with the switches of Dr.GRPO and DAPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from simplerl.algorithms.base import AlgorithmConfig
from simplerl.errors import ConfigError
from simplerl.types import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import ScoredBatch, TrainBatch
    from simplerl.config import Recipe
    from simplerl.losses.losses import GlobalCounts


class Config(AlgorithmConfig):
    """GRPO: the other responses to a prompt are the baseline; there is no critic.

    Dr.GRPO (arXiv:2503.20783): scale_by_std=false, aggregation="constant".
    DAPO (arXiv:2503.14476): clip_high=0.28, aggregation="token-mean", resample_rounds=3, overlong_buffer > 0.
    """

    name: Literal["grpo"] = "grpo"

    aggregation: Literal["sequence-mean", "token-mean", "constant"] = "token-mean"
    """How token losses become one number, over the global minibatch."""

    scale_by_std: bool = True
    """Divide by the group's standard deviation; Dr.GRPO does not."""

    dynamic_sampling_rounds: int = Field(default=0, ge=0)
    """Dynamic sampling: groups whose rewards are all equal are replaced by groups of fresh prompts, so often at most;
    those still equal then stay, with advantages of 0."""

    overlong_buffer: int = Field(default=0, ge=0)
    """Soft overlong penalty: over the last so many tokens before the limit the reward falls linearly."""

    overlong_penalty: float = Field(default=1.0, ge=0)
    """What a response at the limit loses."""

    def check_recipe(self, recipe: Recipe) -> None:
        if recipe.rollout.samples_per_prompt < 2:
            raise ConfigError(
                f"grpo compares responses to one prompt; rollout.samples_per_prompt="
                f"{recipe.rollout.samples_per_prompt} leaves none to compare with, 8 is usual"
            )
        if self.overlong_buffer >= recipe.rollout.max_tokens:
            raise ConfigError(
                f"algorithm.overlong_buffer={self.overlong_buffer} must be below "
                f"rollout.max_tokens={recipe.rollout.max_tokens}"
            )


class GRPO:
    """GRPO without a critic."""

    needs_critic = False
    needs_old_logprobs = False

    def __init__(self, config: Config, response_limit: int) -> None:
        self.config = config
        self.response_limit = response_limit
        self.needs_reference = config.kl_loss_coef > 0
        self.dynamic_sampling_rounds = config.dynamic_sampling_rounds

    def has_learning_signal(self, rewards: Sequence[float]) -> bool:
        return max(rewards) > min(rewards)

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        import torch

        from simplerl.batch.batch import TrainBatch
        from simplerl.losses.advantages import group_advantages

        rewards = batch.rewards - self._overlong(batch.response_lengths)
        per_response = group_advantages(rewards, batch.groups, scale_by_std=self.config.scale_by_std)
        equal = [bool((own := rewards[batch.groups == g]).max() == own.min()) for g in batch.groups.unique()]
        advantages = torch.repeat_interleave(per_response, batch.response_lengths)
        metrics = {"group/equal_share": sum(equal) / len(equal)}
        return batch.extend(TrainBatch, advantages=advantages, returns=None), metrics

    def _overlong(self, lengths: Tensor) -> Tensor:
        """DAPO's soft overlong penalty (arXiv:2503.14476, eq. 13): 0 up to the buffer, then linear: [N]."""
        buffer = self.config.overlong_buffer
        if not buffer:
            return lengths * 0.0
        inside = (lengths - (self.response_limit - buffer)).clamp(0, buffer)
        return self.config.overlong_penalty * inside / buffer

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from simplerl.algorithms._policy_gradient import surrogate_loss

        return surrogate_loss(self.config, self.response_limit, logprobs, entropy, micro_batch, counts)

    def value_loss(
        self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("grpo has no critic")

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: dict[str, float]) -> None:
        pass


def build(config: Config, recipe: Recipe) -> GRPO:
    """GRPO for a recipe."""
    return GRPO(config, recipe.rollout.max_tokens)
