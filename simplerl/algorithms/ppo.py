"""Proximal policy optimisation with a critic (arXiv:1707.06347), as in the published SimpleRL-Zero recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from simplerl.algorithms.base import Algorithm, AlgorithmConfig
from simplerl.errors import ConfigError
from simplerl.types import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import ScoredBatch, TrainBatch
    from simplerl.config import Recipe
    from simplerl.losses.losses import GlobalCounts


class Config(AlgorithmConfig):
    """PPO: a per-token KL penalty in the reward, GAE, a clipped critic."""

    name: Literal["ppo"] = "ppo"

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token. Default 1: a correct answer is worth the same at any length. Below 1, it is worth more the
    shorter it is."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of GAE for the policy's advantages. Default 0.95. Raise it towards 1 for long responses: the reward of the
    last token reaches a token k before it with weight lam^k."""

    value_lam: float | None = Field(default=None, ge=0, le=1)
    """Lambda of the critic's targets. None (default): the policy's. Set 1 for unbiased targets if
    `value/explained_variance` stays low (VC-PPO, arXiv:2503.01491)."""

    adaptive_lam_alpha: float | None = Field(default=None, gt=0)
    """Alpha of VAPO's length-adaptive lambda, 1 - 1 / (alpha l) for l response tokens (arXiv:2504.05118), used instead
    of `lam`. None (default): `lam` for every length. Set it (VAPO: 0.05) if lengths differ by orders of magnitude."""

    value_clip: float | None = Field(default=0.2, gt=0)
    """How far the critic may move from its old value before its loss is clipped, in units of reward. Default 0.2. None:
    not clipped. Raise it for rewards much larger than 1."""

    kl_coef: float = Field(default=0.01, ge=0)
    """Weight of the per-token KL (k1) to the reference policy, subtracted from the reward. Default 0.01, as published.
    0: none, and no reference is loaded for it. Lower it if `kl/reference` stays near 0 and the reward does not rise."""

    kl_target: float | None = Field(default=None, gt=0)
    """KL per token, in nats, that an adaptive kl_coef aims at (arXiv:1909.08593, section 2.2). None (default): kl_coef
    is fixed. Set it if no fixed value suits the whole run."""

    kl_horizon: int = Field(default=10_000, ge=1)
    """Sequences over which the adaptive kl_coef changes by about 20 % at most. Default 10,000. No effect without
    `kl_target`. Raise it if `kl/coefficient` oscillates."""

    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over all response tokens of the rollout batch. Default true, as
    published. Set it to false to keep their scale and sign."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `ConfigError` if the adaptive coefficient would start at 0, where it stays."""
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError("algorithm.kl_target needs a start: algorithm.kl_coef=0 cannot adapt; set kl_coef > 0")


class PPO(Algorithm):
    """PPO with a separate critic. `kl_coef` is the coefficient now, adaptive or not."""

    needs_critic = True

    def __init__(self, config: Config, response_limit: int) -> None:
        self.config = config
        self.response_limit = response_limit
        self.kl_coef = config.kl_coef
        self.needs_reference = config.kl_coef > 0 or config.kl_loss_coef > 0
        self.needs_old_logprobs = config.kl_coef > 0

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        """Add the policy's advantages [R] by GAE, whitened if set, and the critic's targets [R]."""
        from simplerl.batch.batch import TrainBatch
        from simplerl.losses import advantages as credit

        config, lengths, metrics = self.config, batch.response_lengths, Metrics()
        assert batch.values is not None
        rewards = credit.token_rewards(batch.rewards, lengths, self._kl_penalty(batch, metrics))
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
        """The penalty of every token [R], kl_coef (log pi_old - log pi_ref). None: no penalty.

        With `kl_target` the coefficient is adapted after its use: x (1 + e n / kl_horizon), with n sequences and
        e = KL / kl_target - 1 clipped to [-0.2, 0.2] (arXiv:1909.08593, section 2.2). The paper's KL is of a sequence,
        this one is a mean over tokens, so that a target does not depend on the length.
        """
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
