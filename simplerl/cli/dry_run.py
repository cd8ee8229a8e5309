"""`simplerl train RECIPE --dry-run`: the resolved recipe and what follows from it."""

from __future__ import annotations

from dataclasses import asdict

import tomli_w

from simplerl.cli.console import say, say_json
from simplerl.config import PluginConfig, Recipe
from simplerl.errors import DataError
from simplerl.estimate.memory import FORMULA
from simplerl.estimate.overview import Plan, make_plan
from simplerl.formatting import number, table
from simplerl.storage.folder import recipe_table


def print_plan(recipe: Recipe, *, as_json: bool) -> None:
    """Settings and plan, as TOML with comments, or as one JSON object."""
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
        say("\n".join(f"#   {line}" for line in FORMULA.splitlines()))


def count_problems(recipe: Recipe) -> int | None:
    """Training problems of a source that is on this machine; None where it would have to be fetched."""
    from simplerl.data.base import load_problems
    from simplerl.verifiers.base import usable_problems

    if not at_hand(recipe.data.source):
        return None
    try:
        problems, _ = load_problems(recipe.data.source, usable_problems(recipe.verifier.name, recipe.verifier.path))
    except DataError:
        return None
    levels = recipe.data.levels
    return sum(not levels or problem.level in levels for problem in problems)


def at_hand(source: PluginConfig) -> bool:
    """Whether reading a source needs no network: it is generated, or its files are here."""
    from simplerl import plugins
    from simplerl.data.base import stored_sets
    from simplerl.data.store import whereabouts

    module = plugins.load("data", source.name, source.path)
    return not any(whereabouts(each).startswith(("hub:", "missing")) for each in stored_sets(module))


def sections(recipe: Recipe, plan: Plan) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Titles and rows of the tables printed after the settings."""
    parts = [("each step", _step_rows(recipe, plan)), ("the run", _run_rows(recipe, plan))]
    parts.append(("models held", _model_rows(plan)))
    for role, phases in (plan.memory_gib or {}).items():
        parts.append(("estimated memory" + ("" if role == "all" else f" of each {role}") + ", GiB", phase_rows(phases)))
    return parts


def phase_rows(phases: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """A row for each part, a column for each phase, the totals last."""
    names = list(dict.fromkeys(part for parts in phases.values() for part in parts if part != "total"))
    rows: list[tuple[str, ...]] = [("", *(f"{phase:>9}" for phase in phases))]
    for name in (*names, "total"):
        values = (parts.get(name, 0.0) for parts in phases.values())
        rows.append((name, *(f"{value:9.2f}" if value else f"{'-':>9}" for value in values)))
    return rows


def _step_rows(recipe: Recipe, plan: Plan) -> list[tuple[str, ...]]:
    rollout, train = recipe.rollout, recipe.train
    return [
        ("sequences", f"{plan.sequences_per_step:,} = {rollout.prompts_per_step:,} prompts x "
                      f"{rollout.samples_per_prompt} responses"),
        ("optimiser steps", f"{plan.updates_per_step:,} of {train.minibatch_size:,} sequences "
                            f"({plan.minibatch_prompts:g} prompts' worth), {_passes(train.ppo_epochs)} over the batch"),
        ("response tokens", f"at most {plan.max_response_tokens_per_step:,}"),
        ("tokens with prompts", f"at most {plan.max_tokens_per_step:,}"),
    ]  # fmt: skip


def _run_rows(recipe: Recipe, plan: Plan) -> list[tuple[str, ...]]:
    rows = [("problems", number(plan.problems, ",", "unknown until the data set is read; see `simplerl data prepare`"))]
    if plan.problems is not None:
        rows[0] = (
            "problems",
            f"{plan.problems:,}, before prompts over {recipe.data.max_prompt_tokens} tokens are dropped",
        )
    rows += [("steps", number(plan.steps, ",", "unknown")), ("optimiser steps", number(plan.updates, ",", "unknown"))]
    if plan.passes is not None:
        rows.append(
            ("passes over the data", f"{plan.passes:.2f}; a pass's incomplete last batch runs on into the next")
        )
    if plan.unused_prompts:
        rows.append(("left over", f"{plan.unused_prompts:,} prompts of the last pass, less than a batch, are not used"))
    return rows


def _model_rows(plan: Plan) -> list[tuple[str, ...]]:
    if plan.parameters is None:
        return [(name, "size unknown until the model is here") for name in plan.models]
    return [(name, f"{count:,} parameters") for name, count in plan.parameters.items()]


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count} passes"
