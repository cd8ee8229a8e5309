"""What an algorithm is: which models it needs, how credit is assigned, which losses are formed.

A new algorithm is one new file with a `Config` (extends `AlgorithmConfig`) and a `build(config, recipe)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from simplerl.config import PluginConfig
from simplerl.types import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import ScoredBatch, TrainBatch
    from simplerl.losses.losses import GlobalCounts


class AlgorithmConfig(PluginConfig):
    """Settings every policy-gradient algorithm has."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped at 1 - this."""

    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped at 1 + this; larger than clip_low is DAPO's clip-higher."""

    aggregation: Literal["sequence-mean", "token-mean", "constant"] = "sequence-mean"
    """How token losses become one number, over the global minibatch."""

    kl_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference policy as a loss; 0 has none."""

    kl_loss_estimator: Literal["k1", "k2", "k3", "k3-unbiased"] = "k3-unbiased"
    """k1's gradient vanishes in expectation, k3's is that of the reverse order; k3-unbiased's is right."""

    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""


class Algorithm(Protocol):
    """One algorithm, as the trainer and the learner see it."""

    needs_critic: bool
    needs_reference: bool
    needs_old_logprobs: bool
    """Whether `compute_advantages` reads the policy's own log-probs."""

    dynamic_sampling_rounds: int
    """How often groups that are not `has_learning_signal` may be replaced by groups of fresh prompts; 0 never."""

    def has_learning_signal(self, rewards: Sequence[float]) -> bool:
        """True if the rewards of a group give a gradient. Called only if `dynamic_sampling_rounds` > 0."""
        ...

    def compute_advantages(self, batch: ScoredBatch) -> tuple[TrainBatch, Metrics]:
        """Advantages (and returns) of every response token, from rewards and the models' scores."""
        ...

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss on a part of a minibatch and its statistics; both add up over the parts."""
        ...

    def value_loss(
        self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss on a part of a minibatch, likewise. Called only if `needs_critic`."""
        ...

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep of the algorithm, such as an adaptive coefficient."""
        ...

    def restore(self, state: dict[str, float]) -> None: ...
