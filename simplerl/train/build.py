"""From a recipe to the parts of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from simplerl import plugins
from simplerl.algorithms.base import Algorithm
from simplerl.config import PluginConfig, Recipe
from simplerl.data.base import load_benchmark, load_problems
from simplerl.data.stream import PromptStream
from simplerl.data.templates import build_prompts
from simplerl.engines.base import Engine
from simplerl.errors import ConfigError, DataError
from simplerl.evaluation.held_out import HeldOut
from simplerl.plan import total_steps, updates_per_step
from simplerl.policy.learner import Learner
from simplerl.policy.models import resolve_model_path
from simplerl.rewards.base import Reward
from simplerl.train.trainer import Phase, Trainer
from simplerl.types import Prompt
from simplerl.verifier.base import Verifier

Notice = Callable[[str], None]


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    path = resolve_model_path(recipe.model.path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=recipe.model.trust_remote_code)


def choose_device(recipe: Recipe) -> torch.device:
    """The recipe's device; `auto` is CUDA where there is one."""
    wanted = recipe.model.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device=cuda but this machine has no CUDA device; use model.device=auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def build_verifier(config: PluginConfig) -> Verifier:
    return plugins.load("verifiers", config.name, config.path).build(config)


def build_reward(config: PluginConfig) -> Reward:
    """A reward plug-in's `build(config)`, or in a user's own file a plain function `reward(rollout, verdict)`."""
    module = plugins.load("rewards", config.name, config.path)
    if hasattr(module, "build"):
        return module.build(config)
    if hasattr(module, "reward"):
        return module.reward
    raise ConfigError(
        f"reward.path={config.path} defines neither `build(config)` nor `reward(rollout, verdict)`; add one of them"
    )


def build_algorithm(recipe: Recipe) -> Algorithm:
    config = recipe.algorithm
    return plugins.load("algorithms", config.name, config.path).build(config, recipe)


def build_engine(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Engine:
    module = plugins.load("engines", recipe.engine.name, recipe.engine.path)
    return module.build(
        recipe.engine,
        resolve_model_path(recipe.model.path),
        tokenizer,
        dtype=recipe.model.dtype,
        device=str(device),
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def training_prompts(recipe: Recipe, tokenizer: Any, notice: Notice) -> list[Prompt]:
    """The training problems as prompts; what is left out is counted and said."""
    data = recipe.data
    problems, notices = load_problems(data.source)
    for text in notices:
        notice(text)
    if data.levels:
        problems = [p for p in problems if p.level in data.levels]
    prompts, dropped = build_prompts(problems, data.template, tokenizer, data.max_prompt_tokens)
    if dropped:
        notice(f"{dropped} of {len(problems)} prompts are longer than {data.max_prompt_tokens} tokens and left out")
    if not prompts:
        raise DataError(
            f"no training prompt is left of {data.source.name}: data.levels={list(data.levels)}, "
            f"data.max_prompt_tokens={data.max_prompt_tokens}; loosen one of them"
        )
    return prompts


def held_out_sets(recipe: Recipe, tokenizer: Any, notice: Notice) -> list[HeldOut]:
    """The benchmarks evaluated during training; prompts left out for their length are said."""
    sets = []
    for wanted in recipe.eval.sets:
        problems = load_benchmark(wanted.name)[: wanted.limit]
        template = recipe.eval.template or recipe.data.template
        prompts, dropped = build_prompts(problems, template, tokenizer, recipe.data.max_prompt_tokens)
        if dropped:
            notice(f"{wanted.name}: {dropped} of {len(problems)} prompts are too long; they are not evaluated")
        sets.append(HeldOut(wanted.name, prompts))
    return sets


def build_trainer(recipe: Recipe, tokenizer: Any, prompts: list[Prompt], phase: Phase) -> Trainer:
    """Models, engine, reward and algorithm of a run, at its beginning."""
    device = choose_device(recipe)
    algorithm = build_algorithm(recipe)
    horizon = total_steps(recipe, len(prompts)) * updates_per_step(recipe)
    torch.manual_seed(recipe.seed)
    return Trainer(
        recipe=recipe,
        stream=PromptStream(prompts, recipe.seed),
        engine=build_engine(recipe, tokenizer, device),
        verifier=build_verifier(recipe.verifier),
        reward=build_reward(recipe.reward),
        algorithm=algorithm,
        learner=Learner(recipe, algorithm, horizon, device),
        phase=phase,
    )
