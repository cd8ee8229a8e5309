"""One step of reinforcement learning, for every algorithm: each line of `RLTrainer.step` is one stage of the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from simplerl.algorithms.base import Algorithm
from simplerl.batch.batch import TrainBatch, collate
from simplerl.config import Recipe
from simplerl.engines.base import Engine
from simplerl.errors import EngineError
from simplerl.estimate.steps import needs_scoring_pass
from simplerl.learner.base import Learner
from simplerl.losses.importance import importance_weights, policy_ratio
from simplerl.rewards.base import Reward
from simplerl.rollouts.prefetch import RolloutSource
from simplerl.seeding import permutation
from simplerl.train.base import StepResult, evaluation_due
from simplerl.train.metrics import merge_metrics, response_rows, rollout_metrics, score_metrics
from simplerl.types import ImportanceMode, Metrics, Phase
from simplerl.verifiers.base import Verifier


@dataclass(frozen=True, slots=True)
class RLTrainer:
    """Everything a step needs. It holds no state: that is in the learner, the algorithm and the rollout source."""

    recipe: Recipe
    rollouts: RolloutSource
    engine: Engine
    verifier: Verifier
    reward: Reward
    algorithm: Algorithm
    learner: Learner
    steps: int
    phase: Phase

    def step(self, step: int) -> StepResult:
        """Train on rollout batch number `step` (from 1)."""
        train, sequences = self.recipe.train, self.recipe.rollout.sequences
        groups, sampling = self.rollouts.take(step)  # [P][G], graded
        with self.phase("score", sequences):  # + old and reference log-probs, values
            batch = self.learner.score(collate(groups), old_logprobs=self.scores_first(step))
        scores = score_metrics(batch)
        batch, credit = self.algorithm.compute_advantages(batch)  # + advantages, returns
        weighted, importance = weigh_by_importance(batch, self.recipe.importance, train.importance_limit)

        with self.phase("update", train.ppo_epochs * sequences):
            updates = self.learner.train(
                weighted,
                self.minibatches(step),
                self.algorithm,
                train_actor=step > train.critic_warmup_steps,
                check=partial(check_mismatch, self.recipe, scores),
            )
        sync = self.rollouts.after_update(step, groups, needs_weights=evaluation_due(self.recipe, step, self.steps))

        flat = [graded for group in groups for graded in group]
        metrics = rollout_metrics(flat) | sampling | scores | credit | importance | merge_metrics(updates) | sync
        return StepResult(metrics, response_rows(step, groups, batch), shown=flat[0])

    def scores_first(self, step: int) -> bool:
        """True if the policy scores its responses before the first update of a step."""
        return needs_scoring_pass(self.recipe, step, needs_old_logprobs=self.algorithm.needs_old_logprobs)

    def minibatches(self, step: int) -> list[Tensor | None]:
        """Rows of each minibatch of a step, epoch by epoch. None: every row, when a minibatch is the whole batch."""
        train, sequences = self.recipe.train, self.recipe.rollout.sequences
        size, epochs = train.minibatch_size, range(train.ppo_epochs)
        if size == sequences:
            return [None for _ in epochs]
        orders = (permutation(sequences, self.recipe.seed, "minibatch", step, epoch) for epoch in epochs)
        return [torch.tensor(order[first : first + size]) for order in orders for first in range(0, sequences, size)]

    def validate(self) -> None:
        """Return None: reinforcement learning keeps no validation set."""

    def save(self, folder: Path) -> None:
        self.rollouts.save(folder)

    def restore(self, folder: Path) -> None:
        self.rollouts.restore(folder)

    def close(self) -> None:
        self.rollouts.close()


def weigh_by_importance(batch: TrainBatch, mode: ImportanceMode, limit: float) -> tuple[TrainBatch, Metrics]:
    """Multiply advantages by what corrects for the policy that sampled, see `train.importance`.

    A loss that is linear in the advantages, as every clipped surrogate is for non-negative weights, is weighted by the
    same factor (arXiv:2110.00641).
    """
    if mode == "none":
        return batch, {}
    assert batch.old_logprobs is not None
    weights = importance_weights(batch.old_logprobs, batch.sampled_logprobs, mode, limit)
    ratios = policy_ratio(batch.old_logprobs, batch.sampled_logprobs)
    limited = (weights != ratios).float().mean().item()
    metrics = {"importance/mean": weights.mean().item(), "importance/limited": limited}
    return batch.extend(TrainBatch, advantages=batch.advantages * weights), metrics


def check_mismatch(recipe: Recipe, scores: Metrics, update: Metrics) -> None:
    """Refuse an update if engine and learner disagree on the batch's log-probs by more than `train.mismatch_limit`.

    The statistics come from scoring, or from the update if scoring was skipped. Raises `EngineError`. Nothing is
    checked where the two distributions differ by design: top-p, top-k, or v0's log-probs without the temperature.
    """
    rollout, train, stats = recipe.rollout, recipe.train, scores | update
    same = train.logprob_temperature == "sampling" or rollout.temperature == 1.0
    if not same or rollout.top_p < 1 or rollout.top_k or "mismatch/mean" not in stats:
        return
    if not stats["mismatch/mean"] <= train.mismatch_limit:
        raise EngineError(
            f"engine and learner disagree: mean |log-prob difference| {stats['mismatch/mean']:.3g} over all "
            f"tokens exceeds train.mismatch_limit={train.mismatch_limit:g}; its weights or precision are off"
        )
