"""Group-relative policy optimisation (arXiv:2402.03300), with the switches of Dr.GRPO and DAPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from simplerl.algorithms.base import Algorithm, AlgorithmConfig
from simplerl.errors import ConfigError
from simplerl.types import Aggregation, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import ScoredBatch, TrainBatch
    from simplerl.config import Recipe
    from simplerl.losses.losses import GlobalCounts


class Config(AlgorithmConfig):
    """GRPO: the mean reward of a prompt's responses is the baseline, in place of a critic.

    Dr.GRPO (arXiv:2503.20783): scale_by_std=false, aggregation="constant".
    DAPO (arXiv:2503.14476): clip_high=0.28, aggregation="token-mean", dynamic_sampling_rounds=3, and
    reward.overlong_buffer > 0.
    """

    name: Literal["grpo"] = "grpo"

    # The paper's mean is over each response first (sequence-mean), which weighs tokens of long responses less.
    aggregation: Aggregation = "token-mean"
    """How token losses become one number over the global minibatch, see `simplerl.losses.losses.token_weights`. Default
    `token-mean`, as in DAPO and the released v1 code. Change it to repeat Dr.GRPO (`constant`) or GRPO's paper
    (`sequence-mean`)."""

    scale_by_std: bool = True
    """Divide advantages by the standard deviation of the group's rewards. Default true, as in GRPO. Set it to false for
    Dr.GRPO: dividing weighs prompts that are nearly always or never solved more."""

    dynamic_sampling_rounds: int = Field(default=0, ge=0)
    """DAPO's dynamic sampling: how many times groups of equal rewards are replaced by groups of fresh prompts; those
    still equal then stay, with advantages of 0. Default 0: never. Set it if `group/equal_share` is high; each round
    samples that share of the batch again. Rewards are compared after shaping, so an overlong penalty makes them
    unequal; DAPO compares correctness."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `ConfigError` if groups have one response."""
        if recipe.rollout.samples_per_prompt < 2:
            raise ConfigError(
                f"grpo compares responses to one prompt; rollout.samples_per_prompt="
                f"{recipe.rollout.samples_per_prompt} leaves none to compare with, 8 is usual"
            )


class GRPO(Algorithm):
    """GRPO without a critic."""

    def __init__(self, config: Config, response_limit: int) -> None:
        self.config = config
        self.response_limit = response_limit
        self.needs_reference = config.kl_loss_coef > 0
        self.dynamic_sampling_rounds = config.dynamic_sampling_rounds

    def has_learning_signal(self, rewards: Sequence[float]) -> bool:
        """True if the rewards differ: equal ones have advantages of 0."""
        return max(rewards) > min(rewards)

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        """Add each response's group advantage to all of its tokens: [R]. There are no returns."""
        import torch

        from simplerl.batch.batch import TrainBatch
        from simplerl.losses.advantages import group_advantages

        rewards, groups = batch.rewards, batch.groups
        per_response = group_advantages(rewards, groups, scale_by_std=self.config.scale_by_std)
        equal = [bool((own := rewards[groups == g]).max() == own.min()) for g in groups.unique()]
        advantages = torch.repeat_interleave(per_response, batch.response_lengths)
        metrics = {"group/equal_share": sum(equal) / len(equal)}
        return batch.extend(TrainBatch, advantages=advantages, returns=None), metrics

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from simplerl.algorithms._policy_gradient import surrogate_loss

        return surrogate_loss(self.config, self.response_limit, logprobs, entropy, micro_batch, counts)


def build(config: Config, recipe: Recipe) -> GRPO:
    """GRPO for a recipe."""
    return GRPO(config, recipe.rollout.max_tokens)
