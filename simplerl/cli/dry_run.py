"""`simplerl train RECIPE --dry-run`: the resolved recipe, and its steps, models and memory."""

from __future__ import annotations

from dataclasses import asdict

import tomli_w

from simplerl.cli.console import say, say_json
from simplerl.config import PluginConfig, Recipe
from simplerl.errors import DataError
from simplerl.estimate.memory import NOTES, PURPOSES
from simplerl.estimate.overview import Plan, make_plan
from simplerl.formatting import Row, number, table
from simplerl.storage.folder import recipe_table


def print_plan(recipe: Recipe, *, as_json: bool) -> None:
    """Print settings and plan, as TOML with comments or as one JSON object."""
    plan = make_plan(recipe, count_problems(recipe))
    settings = recipe_table(recipe)
    if as_json:
        say_json({"recipe": settings, "plan": asdict(plan)})
        return
    say(tomli_w.dumps(settings))
    for title, rows in sections(recipe, plan):
        say(f"# {title}")
        say(table(rows, indent="#   ") + "\n#")
    if plan.memory_gib is not None:
        say("\n".join(f"# {line}" for line in NOTES))
        say(table(list(PURPOSES.items()), indent="#   "))


def count_problems(recipe: Recipe) -> int | None:
    """Training problems of a source that can be read without a network. None: it would have to be downloaded."""
    from simplerl.data.base import load_problems
    from simplerl.verifiers.base import usable_problems

    if not is_local(recipe.data.source):
        return None
    try:
        problems, _ = load_problems(recipe.data.source, usable_problems(recipe.verifier.name, recipe.verifier.path))
    except DataError:
        return None
    levels = recipe.data.levels
    return sum(not levels or problem.level in levels for problem in problems)


def is_local(source: PluginConfig) -> bool:
    """True if reading a source needs no network: it is generated, or its files are on this machine."""
    from simplerl import plugins
    from simplerl.data.base import stored_sets
    from simplerl.data.store import whereabouts

    module = plugins.load("data", source.name, source.path)
    return not any(whereabouts(each).startswith(("hub:", "missing")) for each in stored_sets(module))


def sections(recipe: Recipe, plan: Plan) -> list[tuple[str, list[Row]]]:
    """Titles and rows of the tables that follow the settings."""
    parts = [("each step", _step_rows(recipe, plan)), ("the run", _run_rows(recipe, plan))]
    parts.append(("models in memory", _model_rows(plan)))
    for role, phases in (plan.memory_gib or {}).items():
        parts.append(("estimated memory" + ("" if role == "all" else f" of each {role}") + ", GiB", phase_rows(phases)))
    return parts


def phase_rows(phases: dict[str, dict[str, float]]) -> list[Row]:
    """A row for each purpose and a column for each phase; the totals last."""
    names = list(dict.fromkeys(name for parts in phases.values() for name in parts if name != "total"))
    rows: list[Row] = [("", *(f"{phase:>9}" for phase in phases))]
    for name in (*names, "total"):
        columns = ((parts.get(name, 0.0), max(9, len(phase))) for phase, parts in phases.items())
        rows.append((name, *(f"{value:{width}.2f}" if value else f"{'-':>{width}}" for value, width in columns)))
    return rows


def _step_rows(recipe: Recipe, plan: Plan) -> list[Row]:
    rollout, train = recipe.rollout, recipe.train
    return [
        ("sequences", f"{plan.sequences_per_step:,} = {rollout.prompts_per_step:,} prompts x "
                      f"{rollout.samples_per_prompt} responses"),
        ("optimiser steps", f"{plan.updates_per_step:,} of {train.minibatch_size:,} sequences "
                            f"({plan.minibatch_prompts:g} prompts' worth), {_passes(train.ppo_epochs)} over the batch"),
        ("response tokens", f"at most {plan.max_response_tokens_per_step:,}"),
        ("tokens with prompts", f"at most {plan.max_tokens_per_step:,}"),
    ]  # fmt: skip


def _run_rows(recipe: Recipe, plan: Plan) -> list[Row]:
    problems = "unknown until the data set is downloaded; see `simplerl data prepare`"
    if plan.problems is not None:
        problems = f"{plan.problems:,}; prompts longer than {recipe.data.max_prompt_tokens:,} tokens will be dropped"
    rows: list[Row] = [
        ("problems", problems),
        ("steps", number(plan.steps, ",", "unknown")),
        ("optimizer steps", number(plan.updates, ",", "unknown")),
    ]
    if plan.passes is not None:
        text = f"{plan.passes:.2f}; an incomplete last batch of a pass is filled from the next pass"
        rows.append(("passes over the data", text))
    if plan.unused_prompts:
        rows.append(("unused prompts", f"{plan.unused_prompts:,} of the last pass, fewer than a batch"))
    return rows


def _model_rows(plan: Plan) -> list[Row]:
    if plan.parameters is None:
        return [(name, "size unknown until the model is downloaded") for name in plan.models]
    return [(name, f"{count:,} parameters") for name, count in plan.parameters.items()]


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count} passes"
