"""One step of reinforcement learning, for every algorithm: each line of `RLTrainer.step` is one of its stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from simplerl.algorithms.base import Algorithm
from simplerl.batch.batch import TrainBatch, collate
from simplerl.config import Recipe
from simplerl.engines.base import Engine
from simplerl.estimate.steps import needs_scoring_pass
from simplerl.learner.learner import Learner
from simplerl.losses.importance import importance_weights, policy_ratio
from simplerl.rewards.base import Reward
from simplerl.rollouts.collect import Groups, Sampler
from simplerl.rollouts.prefetch import RolloutPrefetcher, Sampled
from simplerl.rollouts.serialise import pack, unpack
from simplerl.seeding import permutation
from simplerl.storage.checkpoint import load_tensors, save_tensors
from simplerl.train.base import StepResult, evaluation_due, rest
from simplerl.train.metrics import mean_of, response_rows, rollout_metrics, score_metrics
from simplerl.train.weight_sync import check_mismatch, weight_sync_check
from simplerl.types import Metrics, Phase
from simplerl.verifiers.base import Verifier

KEPT = "ahead"
"""The file of a checkpoint that holds batches sampled ahead."""


@dataclass(slots=True)
class RLTrainer:
    """Everything a step needs. What it remembers are batches sampled ahead; all else is in learner and algorithm."""

    recipe: Recipe
    sample: Sampler
    learner: Learner
    steps: int
    phase: Phase = lambda name, total: nullcontext()
    ahead: RolloutPrefetcher = field(init=False)
    current: bool = True
    """Whether the engine holds the learner's weights."""

    def __post_init__(self) -> None:
        self.ahead = RolloutPrefetcher(self.sample)

    @property
    def engine(self) -> Engine:
        return self.sample.engine

    @property
    def verifier(self) -> Verifier:
        return self.sample.verifier

    @property
    def reward(self) -> Reward:
        return self.sample.reward

    @property
    def algorithm(self) -> Algorithm:
        return self.sample.algorithm

    def step(self, step: int) -> StepResult:
        """Rollout batch number `step` (from 1): sample, grade, score, assign credit, update, hand over the weights."""
        train, rollout = self.recipe.train, self.recipe.rollout
        groups, sampling = self.rollouts(step)  # [P][G], graded
        with self.phase("score", rollout.sequences):
            batch = self.learner.score(collate(groups), own=self.scores_first(step))  # log-probs, values
        scores = score_metrics(batch)
        check_mismatch(self.recipe, scores)
        batch, credit = self.algorithm.compute_advantages(batch)  # advantages, returns
        weighted, weights = self.weighted(batch)

        how = {"train_actor": step > train.critic_warmup_steps, "check": partial(check_mismatch, self.recipe)}
        with self.phase("update", train.ppo_epochs * rollout.sequences):
            updates = self.learner.train(weighted, self.minibatches(step), self.algorithm, **how)

        flat = [graded for group in groups for graded in group]
        metrics = rollout_metrics(flat) | sampling | scores | credit | weights | mean_of(updates)
        return StepResult(metrics | self.finish(step, groups), response_rows(step, groups, batch), shown=flat[0])

    # --- rollouts -------------------------------------------------------------------------------------------------

    def rollouts(self, step: int) -> tuple[Groups, Metrics]:
        """The batch of a step, sampled now, or while the learner was at earlier ones (`train.staleness`)."""
        lag = self.recipe.train.staleness
        if lag == 0:
            groups = self.sample(step, self.phase)
            rest(self.recipe, self.engine)
            return groups, {}
        metrics: Metrics = {}
        if step in self.ahead:
            sampled = self._wait(step)
            if lag == 1 and not self.current:  # the engine is idle
                metrics = self.sync_weights(step - 1, sampled.groups)
        # By the learner's weights as they are: of batch `step` + lag they are `lag` updates old when it is trained on.
        before = None if self.current else self._later_weight_sync(step - 1)
        for number in range(step, min(step + lag, self.steps) + 1):
            if number not in self.ahead:
                self.ahead.begin(number, before)
                before = None
        sampled = self._wait(step)
        graded = [graded for group in sampled.groups for graded in group]
        metrics["staleness"] = fmean(step - 1 - each.rollout.policy_version for each in graded)
        metrics |= {"time/rollout": sampled.seconds, "time/grade": sum(each.verdict.seconds for each in graded)}
        return sampled.groups, metrics

    def finish(self, step: int, groups: Groups) -> Metrics:
        """Hands the weights over where the engine needs them now."""
        self.current = False
        lag = self.recipe.train.staleness
        if lag:
            self.ahead.forget(step)
        if lag and not evaluation_due(self.recipe, step, self.steps):
            return {}
        self.ahead.settle()
        return self.sync_weights(step, groups)

    def sync_weights(self, version: int, groups: Groups) -> Metrics:
        """Gives an idle engine the learner's weights, and sees that it has them."""
        self.engine.load_weights(self.learner.weights(), version)
        self.current = True
        return weight_sync_check(self.recipe, self.engine, self.learner, groups[0][0].rollout.prompt, version)

    def _later_weight_sync(self, version: int) -> Callable[[], None]:
        """The same for an engine that is at work; no probe, since the learner will have moved on."""
        weights = self.learner.weights(kept=True)
        return lambda: self.engine.load_weights(weights, version)

    def _wait(self, step: int) -> Sampled:
        with self.phase("wait", self.recipe.rollout.sequences):
            return self.ahead.wait(step)

    # --- training -------------------------------------------------------------------------------------------------

    def weighted(self, batch: TrainBatch) -> tuple[TrainBatch, Metrics]:
        """Advantages times what corrects for the policy that sampled, see `train.importance`.

        A loss that is linear in the advantages, as every clipped surrogate is for weights that are not negative, is
        then weighted by it (arXiv:2110.00641).
        """
        how, limit = self.recipe.importance, self.recipe.train.importance_limit
        if how == "none":
            return batch, {}
        assert batch.old_logprobs is not None
        weights = importance_weights(batch.old_logprobs, batch.sampled_logprobs, how, limit)
        ratios = policy_ratio(batch.old_logprobs, batch.sampled_logprobs)
        limited = (weights != ratios).float().mean().item()
        metrics = {"importance/mean": weights.mean().item(), "importance/limited": limited}
        return batch.extend(TrainBatch, advantages=batch.advantages * weights), metrics

    def minibatches(self, step: int) -> list[Tensor | None]:
        """The rows of each minibatch of a step, epoch by epoch; None is all of them, in which order means nothing."""
        train, sequences = self.recipe.train, self.recipe.rollout.sequences
        size = train.minibatch_size
        if size == sequences:
            return [None] * train.ppo_epochs
        orders = (
            permutation(sequences, self.recipe.seed, "minibatch", step, epoch) for epoch in range(train.ppo_epochs)
        )
        return [torch.tensor(order[first : first + size]) for order in orders for first in range(0, sequences, size)]

    def validate(self) -> None:
        """Every problem is trained on."""

    def scores_first(self, step: int) -> bool:
        """True if the policy scores its responses before the first update of a step."""
        return needs_scoring_pass(self.recipe, step, needs_old_logprobs=self.algorithm.needs_old_logprobs)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def keep(self, folder: Path) -> None:
        """Writes batches that were sampled ahead into a checkpoint's folder; waits for what is under way."""
        if batches := self.ahead.settle():
            save_tensors(folder / f"{KEPT}.safetensors", pack(batches, self.sample.stream.items))

    def restore(self, folder: Path) -> None:
        """The inverse of `keep`."""
        if (folder / f"{KEPT}.safetensors").is_file():
            for number, groups in unpack(load_tensors(folder, KEPT), self.sample.stream.items).items():
                self.ahead.adopt(number, groups)

    def close(self) -> None:
        self.ahead.close()
