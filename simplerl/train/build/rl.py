"""Builds the trainer of a reinforcement learning recipe."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from simplerl.config import Recipe
from simplerl.data.stream import PromptStream
from simplerl.data.templates import build_prompts
from simplerl.errors import DataError
from simplerl.estimate.steps import total_steps, updates_per_step
from simplerl.rollouts.collect import RolloutCollector
from simplerl.rollouts.prefetch import RolloutPrefetcher, RolloutsOnDemand
from simplerl.rollouts.weight_sync import WeightSync
from simplerl.train.base import Job
from simplerl.train.build.problems import training_problems
from simplerl.train.build.services import (
    build_algorithm,
    build_reward,
    choose_device,
    place_engine,
    place_learner,
    place_verifier,
)
from simplerl.train.console import STEP_COLUMNS
from simplerl.train.trainer import RLTrainer
from simplerl.types import Notice, Phase, Prompt
from simplerl.verifiers.base import usable_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simplerl.cluster.placement import Placement


def training_prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> list[Prompt]:
    """Build prompts from the training problems. Notices count the problems that are left out.

    Raises `DataError` if none is left.
    """
    data = recipe.data
    problems = training_problems(data, notice, usable_problems(recipe.verifier.name, recipe.verifier.path))
    prompts, dropped = build_prompts(problems, data.template, tokenizer, data.max_prompt_tokens)
    if dropped:
        notice(
            f"{dropped} of {len(problems)} prompts are longer than data.max_prompt_tokens={data.max_prompt_tokens} "
            "and are left out"
        )
    if not prompts:
        raise DataError(
            f"{data.source.name}: every training prompt is left out; data.levels={list(data.levels)}, "
            f"data.max_prompt_tokens={data.max_prompt_tokens}: loosen one of them"
        )
    return prompts


def reinforcement_job(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> Job:
    """Load the prompts; the job builds a trainer that samples responses to them and learns from these."""
    prompts = training_prompts(recipe, tokenizer, notice)
    steps = total_steps(recipe, len(prompts))

    def build(phase: Phase, placement: Placement | None = None) -> RLTrainer:
        device = choose_device(recipe)
        algorithm = build_algorithm(recipe)
        engine = place_engine(recipe, tokenizer, device, placement)
        verifier, reward = place_verifier(recipe, placement), build_reward(recipe)
        collector = RolloutCollector(recipe, PromptStream(prompts, recipe.seed), engine, verifier, reward, algorithm)
        learner = place_learner(recipe, algorithm, steps * updates_per_step(recipe), device, placement)
        weights = WeightSync(recipe, engine, learner)
        rollouts = (
            RolloutPrefetcher(collector, weights, phase, steps)
            if recipe.train.staleness
            else RolloutsOnDemand(collector, weights, phase)
        )
        # Models and prompts are never garbage; scanning them at every collection takes 3 % of a short step.
        gc.freeze()
        return RLTrainer(recipe, rollouts, engine, verifier, reward, algorithm, learner, steps, phase)

    return Job(steps, STEP_COLUMNS, build)
