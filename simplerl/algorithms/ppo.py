"""Proximal policy optimisation with a critic (arXiv:1707.06347), as in the published SimpleRL-Zero recipe."""

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
    """PPO: a per-token KL in the reward, GAE, a clipped critic."""

    name: Literal["ppo"] = "ppo"

    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of GAE for the policy's advantages."""

    value_lam: float | None = Field(default=None, ge=0, le=1)
    """Lambda of the critic's targets; empty: the policy's. 1 gives unbiased returns (VC-PPO, arXiv:2503.01491)."""

    adaptive_lam_alpha: float | None = Field(default=None, gt=0)
    """Length-adaptive lambda 1 - 1 / (alpha l) for the policy (VAPO, arXiv:2504.05118); empty: `lam`."""

    value_clip: float | None = Field(default=0.2, gt=0)
    """The critic's clip; empty: none."""

    kl_coef: float = Field(default=0.01, ge=0)
    """Per-token KL (k1) to the reference policy, taken from the reward; 0 loads no reference."""

    kl_target: float | None = Field(default=None, gt=0)
    """Adapt kl_coef to hold this KL per token (arXiv:1909.08593, section 2.2); empty: fixed."""

    kl_horizon: int = Field(default=10_000, ge=1)
    """Sequences over which the adaptive coefficient moves."""

    reward_clip: float | None = Field(default=10.0, gt=0)
    """A response's reward is clipped to plus or minus this."""

    whiten_advantages: bool = True
    """Whiten over all response tokens of the rollout batch."""

    def check_recipe(self, recipe: Recipe) -> None:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError("algorithm.kl_target needs a start: algorithm.kl_coef=0 cannot adapt; set kl_coef > 0")


class PPO:
    """PPO with a separate critic."""

    needs_critic = True
    dynamic_sampling_rounds = 0

    def __init__(self, config: Config, response_limit: int) -> None:
        self.config = config
        self.response_limit = response_limit
        self.kl_coef = config.kl_coef
        self.needs_reference = config.kl_coef > 0 or config.kl_loss_coef > 0
        self.needs_old_logprobs = config.kl_coef > 0

    def has_learning_signal(self, rewards: Sequence[float]) -> bool:
        return True

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        from simplerl.batch.batch import TrainBatch
        from simplerl.losses import advantages as credit

        config, lengths, metrics = self.config, batch.response_lengths, Metrics()
        assert batch.values is not None
        limit = config.reward_clip
        scalars = batch.rewards if limit is None else batch.rewards.clamp(-limit, limit)
        rewards = credit.token_rewards(scalars, lengths, self._kl_penalty(batch, metrics))
        lam = config.lam
        if config.adaptive_lam_alpha is not None:
            lam = credit.adaptive_lambda(lengths, config.adaptive_lam_alpha)
        advantages = credit.gae(rewards, batch.values, lengths, gamma=config.gamma, lam=lam)
        targets = advantages
        if config.value_lam is not None:
            targets = credit.gae(rewards, batch.values, lengths, gamma=config.gamma, lam=config.value_lam)
        returns = targets + batch.values
        metrics["value/explained_variance"] = credit.explained_variance(batch.values, returns)
        metrics["value/mean"] = batch.values.mean().item()
        metrics["return/mean"] = returns.mean().item()
        if config.whiten_advantages:
            advantages = credit.whiten(advantages)
        return batch.extend(TrainBatch, advantages=advantages, returns=returns), metrics

    def _kl_penalty(self, batch: ScoredBatch, metrics: Metrics) -> Tensor | None:
        """The per-token penalty [R]; the coefficient is adapted after its use."""
        if not self.config.kl_coef or batch.ref_logprobs is None:
            return None
        assert batch.old_logprobs is not None
        penalties = self.kl_coef * (batch.old_logprobs - batch.ref_logprobs)
        metrics["kl/coefficient"] = self.kl_coef
        if self.config.kl_target is not None:
            observed = (batch.old_logprobs - batch.ref_logprobs).mean().item()
            error = min(max(observed / self.config.kl_target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * len(batch) / self.config.kl_horizon
        return penalties

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from simplerl.algorithms._policy_gradient import surrogate_loss

        return surrogate_loss(self.config, self.response_limit, logprobs, entropy, micro_batch, counts)

    def value_loss(
        self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from simplerl.losses.losses import clipped_value_loss, token_weights

        assert micro_batch.values is not None and micro_batch.returns is not None
        weights = token_weights(
            micro_batch.response_lengths, self.config.aggregation, counts, constant=self.response_limit
        )
        loss = clipped_value_loss(values, micro_batch.values, micro_batch.returns, weights, clip=self.config.value_clip)
        return loss, {"loss/value": loss.detach()}

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def restore(self, state: dict[str, float]) -> None:
        self.kl_coef = state["kl_coef"]


def build(config: Config, recipe: Recipe) -> PPO:
    """PPO for a recipe."""
    return PPO(config, recipe.rollout.max_tokens)
