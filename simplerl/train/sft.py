"""Supervised fine-tuning: the same learner as in reinforcement learning, on given responses, with advantages of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplerl.batch.batch import collate_examples
from simplerl.config import SFTRecipe
from simplerl.data.stream import PromptStream
from simplerl.engines.base import Engine
from simplerl.learner.base import Learner
from simplerl.losses.losses import GlobalCounts, log_likelihood_loss, token_weights
from simplerl.rewards.base import Reward
from simplerl.rollouts.prefetch import sleep_engine
from simplerl.train.base import StepResult, evaluation_due
from simplerl.types import Example, Metrics, Phase
from simplerl.verifiers.base import Verifier

if TYPE_CHECKING:
    from torch import Tensor

    from simplerl.batch.batch import TrainBatch


class LikelihoodLoss:
    """Mean negative log-likelihood of the response tokens, end tokens included, over the global batch."""

    needs_critic = False
    needs_reference = False

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weights = token_weights(micro_batch.response_lengths, "token-mean", counts)
        loss = log_likelihood_loss(logprobs, micro_batch.advantages, weights)
        return loss, {"loss/sft": loss.detach(), "entropy": entropy.detach().sum() / counts.tokens}

    def value_loss(
        self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("supervised fine-tuning trains no critic")

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: dict[str, float]) -> None:
        pass


@dataclass(slots=True)
class SFTTrainer:
    """Everything a step needs. It holds no state: that is in the learner."""

    recipe: SFTRecipe
    stream: PromptStream[Example]
    validation: Sequence[Example]
    engine: Engine | None
    verifier: Verifier
    reward: Reward
    algorithm: LikelihoodLoss
    learner: Learner
    steps: int
    phase: Phase

    def step(self, step: int) -> StepResult:
        """Take optimiser step number `step`, counted from 1."""
        if self.engine is not None:
            sleep_engine(self.recipe, self.engine)
        examples = self.stream.take(step - 1, self.recipe.train.batch_size)
        batch = collate_examples(examples)
        with self.phase("update", len(examples)):
            (metrics,) = self.learner.train(batch, [None], self.algorithm)
        if self.engine is not None and evaluation_due(self.recipe, step, self.steps):
            self.engine.load_weights(self.learner.weights(), version=step)
        return StepResult(metrics | self.batch_metrics(batch, step))

    def validate(self) -> dict[str, Any] | None:
        """Compute the mean negative log-likelihood per response token of the validation set, in nats."""
        if not self.validation:
            return None
        with self.phase("validate", len(self.validation)):
            logprobs = self.learner.logprobs(collate_examples(self.validation))
        loss = -logprobs.double().mean().item()
        return {"loss": loss, "tokens": len(logprobs), "sequences": len(self.validation)}

    def save(self, folder: Path) -> None:
        pass

    def restore(self, folder: Path) -> None:
        pass

    def close(self) -> None:
        pass

    def batch_metrics(self, batch: TrainBatch, step: int) -> Metrics:
        """Tokens of the batch, use of the token budget, and passes over the data so far."""
        utilization = self.learner.token_utilization(batch)
        return {
            "tokens/prompt": float(batch.prompt_lengths.sum()),
            "tokens/response": float(batch.response_lengths.sum()),
            "length/mean": batch.response_lengths.float().mean().item(),
            "pack/count": float(utilization.micro_batches),
            "pack/token_utilization": utilization.share,
            "epoch": step * len(batch) / len(self.stream.items),
        }
