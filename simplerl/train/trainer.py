"""One step of reinforcement learning, for every algorithm: each line of `RLTrainer.step` is one of its stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from simplerl.algorithms.base import Algorithm
from simplerl.config import Recipe
from simplerl.engines.base import Engine
from simplerl.functional.batch import Credited, collate
from simplerl.policy.learner import Learner
from simplerl.rewards.base import Reward
from simplerl.seeding import permutation
from simplerl.train.agreement import check_mismatch, check_sync
from simplerl.train.base import Phase, StepResult
from simplerl.train.metrics import mean_of, response_rows, rollout_metrics, score_metrics
from simplerl.train.sampler import Sampler
from simplerl.verifier.base import Verifier


@dataclass(slots=True)
class RLTrainer:
    """Everything a step needs, and nothing that remembers: the state is in the learner and the algorithm."""

    recipe: Recipe
    sample: Sampler
    learner: Learner
    phase: Phase = lambda name, total: nullcontext()

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
        groups = self.sample(step, self.phase)  # [P][G], graded
        with self.phase("score", rollout.sequences):
            batch = self.learner.annotate(collate(groups), own=self.scores_first(step))  # log-probs, values
        scores = score_metrics(batch)
        check_mismatch(self.recipe, scores)
        batch, metrics = self.algorithm.assign_credit(batch)  # advantages, returns

        updates = []
        how = {"train_actor": step > train.critic_warmup_steps, "check": partial(check_mismatch, self.recipe)}
        with self.phase("update", train.epochs * rollout.sequences):
            for epoch in range(train.epochs):
                for minibatch in self.minibatches(batch, step, epoch):
                    updates.append(self.learner.update(minibatch, self.algorithm, **how))

        self.engine.load_weights(self.learner.weights(), version=step)
        synced = check_sync(self.recipe, self.engine, self.learner, groups[0][0].rollout.prompt, step)
        flat = [graded for group in groups for graded in group]
        metrics = rollout_metrics(flat) | scores | metrics | mean_of(updates) | synced
        return StepResult(metrics, response_rows(step, groups, batch), shown=flat[0])

    def minibatches(self, batch: Credited, step: int, epoch: int) -> Iterator[Credited]:
        """The batch in random parts; as it is where it is one part, in which order means nothing."""
        size = self.recipe.train.minibatch_size
        if len(batch) == size:
            yield batch
            return
        order = torch.tensor(permutation(len(batch), self.recipe.seed, "minibatch", step, epoch))
        for rows in order.split(size):
            yield batch.select(rows)

    def validate(self) -> None:
        """Every problem is trained on."""

    def scores_first(self, step: int) -> bool:
        """Whether the policy scores its responses before the update; the only update of a step can do it itself."""
        train = self.recipe.train
        one = train.epochs * self.recipe.rollout.sequences == train.minibatch_size and step > train.critic_warmup_steps
        return self.algorithm.credits_logprobs or not one
