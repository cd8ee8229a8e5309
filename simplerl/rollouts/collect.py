"""A rollout batch: prompts answered, graded, and where an algorithm asks for it replaced by others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simplerl.algorithms.base import Algorithm
from simplerl.config import Recipe
from simplerl.data.stream import PromptStream
from simplerl.engines.base import Engine
from simplerl.rewards.base import Reward
from simplerl.rollouts.grade import graded_rollouts, grouped, make_requests
from simplerl.types import GradedRollout, Phase, Prompt, Sampling
from simplerl.verifiers.base import Verifier

Groups = list[list[GradedRollout]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Rollout batches by the weights that the engine holds. A batch depends on its number and on them alone."""

    recipe: Recipe
    stream: PromptStream[Prompt]
    engine: Engine
    verifier: Verifier
    reward: Reward
    algorithm: Algorithm

    def __call__(self, step: int, phase: Phase) -> Groups:
        """Graded groups of batch `step` (from 1) [P][G]; groups that teach nothing are replaced as often as asked."""
        groups = self._round(self.stream.take(step - 1, self.recipe.rollout.prompts_per_step), phase, "sample", step)
        for attempt in range(1, self.algorithm.dynamic_sampling_rounds + 1):
            dull = [i for i, g in enumerate(groups) if not self.algorithm.has_learning_signal([x.reward for x in g])]
            if not dull:
                break
            fresh = self._round(self.stream.extra(step, attempt, len(dull)), phase, "resample", step, attempt)
            for i, group in zip(dull, fresh, strict=True):
                groups[i] = group
        return groups

    def _round(self, prompts: list[Prompt], phase: Phase, *purpose: str | int) -> Groups:
        rollout = self.recipe.rollout
        sampling = Sampling(
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            n=rollout.samples_per_prompt,
            stop=rollout.stop,
        )
        requests = make_requests(prompts, sampling, self.recipe.seed, *purpose)
        with phase("rollout", len(requests)) as progress:
            graded = graded_rollouts(self.engine, requests, self.verifier, self.reward, progress or _nothing)
        return list(grouped(graded, rollout.samples_per_prompt))


_nothing: Callable[[GradedRollout], None] = lambda _: None  # noqa: E731
