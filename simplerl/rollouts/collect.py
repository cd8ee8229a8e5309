"""Collect a rollout batch: prompts answered and graded; groups without a learning signal replaced if asked for."""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.algorithms.base import Algorithm
from simplerl.config import Recipe
from simplerl.data.stream import PromptStream
from simplerl.engines.base import Engine
from simplerl.rewards.base import Reward
from simplerl.rollouts.grade import generate_and_grade, make_requests, split_into_groups
from simplerl.types import GradedRollout, Phase, Prompt, Sampling
from simplerl.verifiers.base import Verifier

Groups = list[list[GradedRollout]]


@dataclass(frozen=True, slots=True)
class RolloutCollector:
    """Collects rollout batches. A batch depends on its number and on the engine's weights alone."""

    recipe: Recipe
    stream: PromptStream[Prompt]
    engine: Engine
    verifier: Verifier
    reward: Reward
    algorithm: Algorithm

    def collect(self, step: int, phase: Phase) -> Groups:
        """Graded groups [P][G] of batch number `step` (from 1).

        Groups without a learning signal are replaced by groups of fresh prompts, at most `dynamic_sampling_rounds`
        times (DAPO, arXiv:2503.14476, section 3.2).
        """
        groups = self._round(self.stream.take(step - 1, self.recipe.rollout.prompts_per_step), phase, "sample", step)
        for attempt in range(1, self.algorithm.dynamic_sampling_rounds + 1):
            signals = [self.algorithm.has_learning_signal([each.reward for each in group]) for group in groups]
            without = [index for index, signal in enumerate(signals) if not signal]
            if not without:
                break
            fresh = self._round(self.stream.extra(step, attempt, len(without)), phase, "resample", step, attempt)
            for index, group in zip(without, fresh, strict=True):
                groups[index] = group
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
            graded = generate_and_grade(self.engine, requests, self.verifier, self.reward, progress)
        return list(split_into_groups(graded, rollout.samples_per_prompt))
