"""Problems for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simplerl.config import DataConfig, TrainingRecipe
from simplerl.data.base import load_benchmark, load_problems
from simplerl.data.rows import file_problems
from simplerl.data.templates import build_prompts
from simplerl.evaluation.held_out import HeldOut
from simplerl.types import Notice, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_problems(data: DataConfig, notice: Notice, is_usable: Callable[[Problem], bool]) -> list[Problem]:
    """Load the problems of the recipe's source and levels."""
    problems, notices = load_problems(data.source, is_usable)
    for text in notices:
        notice(text)
    return [p for p in problems if p.level in data.levels] if data.levels else problems


def held_out_sets(recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> list[HeldOut]:
    """Load the benchmarks evaluated during training. A notice counts prompts that are too long."""
    sets = []
    for wanted in recipe.eval.sets:
        loaded = load_benchmark(wanted.name) if wanted.path is None else file_problems(Path(wanted.path), wanted.name)
        problems = loaded[: wanted.limit]
        template = recipe.eval.template or recipe.data.template
        prompts, dropped = build_prompts(problems, template, tokenizer, recipe.data.max_prompt_tokens)
        if dropped:
            notice(
                f"{wanted.name}: {dropped} of {len(problems)} prompts are longer than "
                f"data.max_prompt_tokens={recipe.data.max_prompt_tokens} and are not evaluated"
            )
        sets.append(HeldOut(wanted.name, prompts))
    return sets
