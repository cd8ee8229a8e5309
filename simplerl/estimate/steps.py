"""Numbers of problems, steps and updates of a recipe, and which steps score the policy before their first update."""

from __future__ import annotations

from simplerl import plugins
from simplerl.config import Recipe, SFTRecipe
from simplerl.errors import ConfigError


def known_problems(recipe: Recipe) -> int | None:
    """Usable problems of the recipe's source, if it knows their number and the recipe keeps all. None: unknown."""
    if recipe.data.levels:
        return None
    source = recipe.data.source
    return getattr(plugins.load("data", source.name, source.path), "USABLE_PROBLEMS", None)


def total_steps(recipe: Recipe, problems: int) -> int:
    """Rollout batches of the whole run: `train.steps`, or those of `train.data_epochs` passes over the data.

    An incomplete last batch of a pass is filled from the next pass. The last pass has none: the rest is not used.
    """
    if recipe.train.steps is not None:
        return recipe.train.steps
    prompts = recipe.train.data_epochs * problems
    if prompts < recipe.rollout.prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_step={recipe.rollout.prompts_per_step} is more than the {prompts} prompts of "
            f"train.data_epochs={recipe.train.data_epochs}; lower prompts_per_step, raise data_epochs, or set "
            "train.steps"
        )
    return prompts // recipe.rollout.prompts_per_step


def sft_steps(recipe: SFTRecipe, examples: int) -> int:
    """Optimiser steps of the whole run: `train.steps`, or those of `train.data_epochs` passes over the data.

    An incomplete last batch of a pass is filled from the next pass. The last pass has none: the rest is not used.
    """
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.data_epochs * examples < train.batch_size:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is more than the {train.data_epochs * examples} sequences of "
            f"train.data_epochs={train.data_epochs} passes over {examples}; lower batch_size, raise data_epochs, or "
            "set train.steps"
        )
    return train.data_epochs * examples // train.batch_size


def updates_per_step(recipe: Recipe) -> int:
    """Optimiser steps on one rollout batch, whose size is a multiple of the minibatch's."""
    return recipe.train.ppo_epochs * recipe.rollout.sequences // recipe.train.minibatch_size


def needs_scoring_pass(recipe: Recipe, step: int, *, needs_old_logprobs: bool) -> bool:
    """True if step number `step` (from 1) computes the policy's log-probs before its first update.

    In a step with one update they are the log-probs of that update's own forward pass, which saves a pass. They must
    exist earlier if the advantages (`needs_old_logprobs`) or the importance weights are computed from them, if later
    updates are compared with them, or if the actor has no forward pass of its own (critic warm-up).
    """
    if needs_old_logprobs or recipe.importance != "none":
        return True
    return updates_per_step(recipe) > 1 or step <= recipe.train.critic_warmup_steps
