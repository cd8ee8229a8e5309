"""A learner with every model there is, and a batch for it."""

from __future__ import annotations

from typing import Any

import torch

from simplerl.algorithms.ppo import PPO, Config
from simplerl.batch.batch import Batch, collate
from simplerl.config import Recipe, apply_overrides, validate_recipe
from simplerl.learner.learner import LocalLearner
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict


def make_recipe(model: str, settings: list[str]) -> Recipe:
    table = {
        "model": {"path": model},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 3, "temperature": 0.7, "max_tokens": 24},
        "algorithm": {"name": "ppo", "kl_coef": 0.05, "kl_loss_coef": 0.1, "entropy_coef": 0.01},
        "train": {"minibatch_size": 4, "micro_batch_tokens": 64, "cpu_threads": 1},
        "actor": {"learning_rate": 1e-3},
        "critic": {"learning_rate": 1e-3},
    }
    return validate_recipe(apply_overrides(table, settings), kind=Recipe)


def make_learner(model: str, settings: list[str], ranks: Any = None) -> tuple[LocalLearner, PPO]:
    recipe = make_recipe(model, settings)
    algorithm = PPO(Config.model_validate(recipe.algorithm.model_dump()), recipe.rollout.max_tokens)
    torch.manual_seed(0)
    return LocalLearner(recipe, algorithm, horizon=10, device=torch.device("cpu"), parallel=ranks), algorithm


def rank_learner(model: str, ranks: Any) -> LocalLearner:
    return make_learner(model, ["train.cpu_threads=2"], ranks)[0]


def make_batch(seed: int = 0, sequences: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    groups = []
    for number in range(sequences // 3):
        prompt = Prompt(Problem(f"p{number}", "q", "1"), "q", tuple(draw(5, 50, 3 + number)))
        group = []
        for size in draw(1, 20, 3):
            rollout = Rollout.single_turn("r", prompt, tuple(draw(5, 50, size)), (-1.0,) * size, "", "stop", 0)
            group.append(GradedRollout(rollout, Verdict("correct"), float(draw(-1, 2, 1)[0])))
        groups.append(group)
    return collate(groups)
