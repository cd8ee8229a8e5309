"""One step of reinforcement learning, for every algorithm: each line of `RLTrainer.step` is one of its stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from simplerl.algorithms.base import Algorithm
from simplerl.config import Recipe
from simplerl.data.stream import PromptStream
from simplerl.engines.base import Engine
from simplerl.functional.batch import Credited, collate
from simplerl.policy.learner import Learner
from simplerl.rewards.base import Reward
from simplerl.sampling import graded_rollouts, grouped, make_requests
from simplerl.seeding import permutation
from simplerl.train.agreement import check_mismatch, check_sync
from simplerl.train.base import Phase, StepResult
from simplerl.train.metrics import mean_of, response_rows, rollout_metrics, score_metrics
from simplerl.types import GradedRollout, Prompt, Sampling
from simplerl.verifier.base import Verifier


@dataclass(slots=True)
class RLTrainer:
    """Everything a step needs, and nothing that remembers: the state is in the learner and the algorithm."""

    recipe: Recipe
    stream: PromptStream[Prompt]
    engine: Engine
    verifier: Verifier
    reward: Reward
    algorithm: Algorithm
    learner: Learner
    phase: Phase = lambda name, total: nullcontext()

    def step(self, step: int) -> StepResult:
        """Rollout batch number `step` (from 1): sample, grade, score, assign credit, update, hand over the weights."""
        train, rollout = self.recipe.train, self.recipe.rollout
        prompts = self.stream.take(step - 1, rollout.prompts_per_step)  # [P]
        groups = self.sample(prompts, step)  # [P][G], graded
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
        synced = check_sync(self.recipe, self.engine, self.learner, prompts[0], step)
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

    def sample(self, prompts: list[Prompt], step: int) -> list[list[GradedRollout]]:
        """Graded groups, one per prompt; groups that teach nothing are replaced as often as the algorithm asks."""
        groups = self._sample_round(prompts, step, 0)
        for attempt in range(1, self.algorithm.resample_rounds + 1):
            dull = [i for i, g in enumerate(groups) if not self.algorithm.informative([x.reward for x in g])]
            if not dull:
                break
            fresh = self._sample_round(self.stream.extra(step, attempt, len(dull)), step, attempt)
            for i, group in zip(dull, fresh, strict=True):
                groups[i] = group
        return groups

    def _sample_round(self, prompts: list[Prompt], step: int, attempt: int) -> list[list[GradedRollout]]:
        rollout = self.recipe.rollout
        sampling = Sampling(
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            n=rollout.samples_per_prompt,
            stop=rollout.stop,
        )
        purpose = ("sample", step) if attempt == 0 else ("resample", step, attempt)
        requests = make_requests(prompts, sampling, self.recipe.seed, *purpose)
        with self.phase("rollout", len(requests)) as progress:
            graded = graded_rollouts(self.engine, requests, self.verifier, self.reward, progress or (lambda _: None))
        return list(grouped(graded, rollout.samples_per_prompt))

    def scores_first(self, step: int) -> bool:
        """Whether the policy scores its responses before the update; the only update of a step can do it itself."""
        train = self.recipe.train
        one = train.epochs * self.recipe.rollout.sequences == train.minibatch_size and step > train.critic_warmup_steps
        return self.algorithm.credits_logprobs or not one
