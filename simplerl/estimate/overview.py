"""Numbers of a recipe before anything runs, in one record."""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.estimate.memory import memory_gib, models_in_memory, parameter_counts
from simplerl.estimate.shapes import known_shape
from simplerl.estimate.steps import known_problems, total_steps, updates_per_step


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of a recipe. None: unknown until the data or the model have been downloaded."""

    sequences_per_step: int
    updates_per_step: int
    minibatch_prompts: float
    max_response_tokens_per_step: int
    max_tokens_per_step: int
    problems: int | None
    steps: int | None
    updates: int | None
    passes: float | None
    unused_prompts: int | None
    models: tuple[str, ...]
    parameters: dict[str, int] | None
    memory_gib: dict[str, dict[str, dict[str, float]]] | None
    """GiB by worker, phase and purpose, see `memory.PURPOSES`."""


def make_plan(recipe: Recipe, problems: int | None = None) -> Plan:
    """The plan of a recipe. `problems` is the number of training problems; None: as far as the source knows it."""
    rollout = recipe.rollout
    problems = known_problems(recipe) if problems is None else problems
    steps = recipe.train.steps if problems is None else total_steps(recipe, problems)
    prompts = None if steps is None else steps * rollout.prompts_per_step
    models, shape = models_in_memory(recipe), known_shape(recipe.model.path)
    return Plan(
        sequences_per_step=rollout.sequences,
        updates_per_step=updates_per_step(recipe),
        minibatch_prompts=recipe.train.minibatch_size / rollout.samples_per_prompt,
        max_response_tokens_per_step=rollout.sequences * rollout.max_tokens,
        max_tokens_per_step=rollout.sequences * (recipe.data.max_prompt_tokens + rollout.max_tokens),
        problems=problems,
        steps=steps,
        updates=None if steps is None else steps * updates_per_step(recipe),
        passes=prompts / problems if problems and prompts else None,
        unused_prompts=_unused_prompts(recipe, problems, prompts),
        models=models,
        parameters=None if shape is None else parameter_counts(models, shape),
        memory_gib=None if shape is None else memory_gib(recipe, shape),
    )


def _unused_prompts(recipe: Recipe, problems: int | None, prompts: int | None) -> int | None:
    """Prompts at the end of the last pass, fewer than a batch. None: unknown, or `train.steps` ends the run."""
    if recipe.train.steps is not None or problems is None or prompts is None:
        return None
    return recipe.train.data_epochs * problems - prompts
