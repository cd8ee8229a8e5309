"""What follows from a recipe before anything runs, in one record."""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.estimate.memory import memory, models_held, parameters_held
from simplerl.estimate.shapes import known_shape
from simplerl.estimate.steps import known_problems, total_steps, updates_per_step


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe asks for. `None` is unknown before the data or the model are at hand."""

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
    """Of each worker, each phase, each part; see `memory.FORMULA`."""


def make_plan(recipe: Recipe, problems: int | None = None) -> Plan:
    """The plan of a recipe; `problems` is the number of training problems where it is known."""
    rollout = recipe.rollout
    problems = known_problems(recipe) if problems is None else problems
    steps = recipe.train.steps if problems is None else total_steps(recipe, problems)
    asked = None if steps is None else steps * rollout.prompts_per_step
    models, shape = models_held(recipe), known_shape(recipe.model.path)
    return Plan(
        sequences_per_step=rollout.sequences,
        updates_per_step=updates_per_step(recipe),
        minibatch_prompts=recipe.train.minibatch_size / rollout.samples_per_prompt,
        max_response_tokens_per_step=rollout.sequences * rollout.max_tokens,
        max_tokens_per_step=rollout.sequences * (recipe.data.max_prompt_tokens + rollout.max_tokens),
        problems=problems,
        steps=steps,
        updates=None if steps is None else steps * updates_per_step(recipe),
        passes=asked / problems if problems and asked else None,
        unused_prompts=_unused(recipe, problems, asked),
        models=models,
        parameters=None if shape is None else parameters_held(models, shape),
        memory_gib=None if shape is None else memory(recipe, shape),
    )


def _unused(recipe: Recipe, problems: int | None, asked: int | None) -> int | None:
    """Prompts of the last pass that make no whole batch; None where `train.steps` ends the run."""
    if recipe.train.steps is not None or problems is None or asked is None:
        return None
    return recipe.train.data_epochs * problems - asked
