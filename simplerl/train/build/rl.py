"""From a recipe of reinforcement learning to its trainer."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

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
    placed_engine,
    placed_learner,
    placed_verifier,
)
from simplerl.train.console import STEP_COLUMNS
from simplerl.train.trainer import RLTrainer
from simplerl.types import Notice, Phase, Prompt
from simplerl.verifiers.base import usable_problems

if TYPE_CHECKING:
    from simplerl.cluster.placement import Placement


def training_prompts(recipe: Recipe, tokenizer: Any, notice: Notice) -> list[Prompt]:
    """The training problems as prompts; what is left out is counted and said."""
    data = recipe.data
    problems = training_problems(data, notice, usable_problems(recipe.verifier.name, recipe.verifier.path))
    prompts, dropped = build_prompts(problems, data.template, tokenizer, data.max_prompt_tokens)
    if dropped:
        notice(f"{dropped} of {len(problems)} prompts are longer than {data.max_prompt_tokens} tokens and left out")
    if not prompts:
        raise DataError(
            f"no training prompt is left of {data.source.name}: data.levels={list(data.levels)}, "
            f"data.max_prompt_tokens={data.max_prompt_tokens}; loosen one of them"
        )
    return prompts


def reinforcement_job(recipe: Recipe, tokenizer: Any, notice: Notice) -> Job:
    """Problems as prompts, and a trainer that learns from its own responses to them."""
    prompts = training_prompts(recipe, tokenizer, notice)
    steps = total_steps(recipe, len(prompts))

    def build(phase: Phase, place: Placement | None = None) -> RLTrainer:
        device = choose_device(recipe)
        algorithm = build_algorithm(recipe)
        engine = placed_engine(recipe, tokenizer, device, place)
        verifier, reward = placed_verifier(recipe, place), build_reward(recipe)
        collector = RolloutCollector(recipe, PromptStream(prompts, recipe.seed), engine, verifier, reward, algorithm)
        learner = placed_learner(recipe, algorithm, steps * updates_per_step(recipe), device, place)
        weights = WeightSync(recipe, engine, learner)
        rollouts = (
            RolloutPrefetcher(collector, weights, phase, steps)
            if recipe.train.staleness
            else RolloutsOnDemand(collector, weights, phase)
        )
        # Models and prompts live as long as the run: scanning them at every collection takes 3 % of a short step.
        gc.freeze()
        return RLTrainer(recipe, rollouts, engine, verifier, reward, algorithm, learner, steps, phase)

    return Job(steps, STEP_COLUMNS, build)
