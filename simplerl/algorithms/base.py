"""Algorithms: the models they need, how they compute advantages, and the losses they form.

A new algorithm is one new file with a `Config` (extends `AlgorithmConfig`) and a `build(config, recipe)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from simplerl.config import PluginConfig
from simplerl.types import Aggregation, KLEstimator, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import ScoredBatch, TrainBatch
    from simplerl.losses.losses import GlobalCounts


class AlgorithmConfig(PluginConfig):
    """Settings of every policy-gradient algorithm."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower clip: the ratio of new to old policy is clipped at 1 - clip_low. Default 0.2, as in PPO's paper. Lower it
    if `kl/old` is large: the policy then moves far in one step."""

    clip_high: float = Field(default=0.2, gt=0)
    """Upper clip: the ratio is clipped at 1 + clip_high. Default 0.2. Raise it if `entropy` collapses; DAPO's
    clip-higher is 0.28."""

    aggregation: Aggregation = "sequence-mean"
    """How token losses become one number over the global minibatch, see `simplerl.losses.losses.token_weights`.
    `sequence-mean` (default): every response weighs the same. `token-mean`: every token does. `constant`: every token
    does, and a longer batch has a larger loss (Dr.GRPO). Change it to repeat a published run."""

    kl_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference policy, as a loss per token. Default 0: no such loss. Set it (0.001 or less) to
    keep the policy near the base model; it loads a reference model."""

    kl_loss_estimator: KLEstimator = "k3-unbiased"
    """Estimator of that KL, see `simplerl.losses.losses.kl_estimate`. Default `k3-unbiased`, whose gradient is that of
    the KL also off policy; `k2`'s is on policy, `k3`'s is that of KL(ref || policy), `k1`'s is zero in expectation.
    Change it only to repeat a published run."""

    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus per token, in nats. Default 0: no bonus. Set it (0.001) if `entropy` collapses."""


class Algorithm:
    """Base class of every algorithm. The defaults are those of one without a critic, a reference and a state."""

    needs_critic: bool = False
    needs_reference: bool = False

    needs_old_logprobs: bool = False
    """True if `compute_advantages` reads the policy's own log-probs."""

    dynamic_sampling_rounds: int = 0
    """How many times groups without a learning signal may be replaced by groups of fresh prompts. 0: never."""

    def has_learning_signal(self, rewards: Sequence[float]) -> bool:
        """True if a group with these (shaped) rewards gives a gradient. Called if `dynamic_sampling_rounds` > 0."""
        return True

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        """Add advantages [R], and returns [R] for a critic, from rewards [N] and the models' scores [R]."""
        raise NotImplementedError

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's loss on a micro-batch and its statistics; `logprobs` and `entropy` are [R], with gradient.

        Losses and statistics of a minibatch's micro-batches add up; of names that end in /max the largest counts.
        """
        raise NotImplementedError

    def value_loss(
        self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critic's loss and statistics likewise; `values` is [R]. Called only if `needs_critic`."""
        raise NotImplementedError

    def state(self) -> dict[str, float]:
        """Numbers that a checkpoint must store, such as an adaptive coefficient."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Take back what `state` returned."""
