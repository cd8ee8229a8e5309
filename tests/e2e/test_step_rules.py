"""Rules of `RLTrainer.step` that show in the files of a short run: warm-up, scoring, and what is recorded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest

from simplerl.config import validate_recipe
from simplerl.storage.records import RunFolder
from simplerl.train import run as runs

pytestmark = pytest.mark.e2e

# Rewards differ within a group and leave [-4, 4] on both sides.
REWARD = """
def reward(rollout, verdict):
    return 20.0 * sum(token < 160 for token in rollout.token_ids) / len(rollout.token_ids) - 5.0
"""


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Any:
    """Train on 4 prompts with 4 responses each, and return the run's folder."""
    (tmp_path / "reward.py").write_text(REWARD)

    def train(algorithm: dict[str, Any], train: dict[str, Any], **reward: float) -> RunFolder:
        table = {
            "model": {"path": str(tiny_model)},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 8},
            "reward": {"path": str(tmp_path / "reward.py"), **reward},
            "algorithm": algorithm,
            "train": {"steps": 1, "minibatch_size": 16, **train},
            "actor": {"learning_rate": 3e-3, "schedule": "constant", "warmup": 0.0},
            "critic": {"learning_rate": 3e-3, "schedule": "constant", "warmup": 0.0},
        }
        return RunFolder(runs.train(validate_recipe(table), tmp_path / "run", plain=True))

    return train


def test_the_critic_alone_is_trained_in_its_warm_up(trained: Any) -> None:
    rows = trained({"name": "ppo"}, {"steps": 3, "critic_warmup_steps": 2}).read_metrics()
    assert ["loss/value" in row for row in rows] == [True] * 3
    assert ["loss/policy" in row for row in rows] == [False, False, True]


def test_importance_needs_scores_of_a_step_s_only_update_too(trained: Any) -> None:
    (row,) = trained({"name": "grpo"}, {"importance": "truncated"}).read_metrics()
    # Engine and learner have the same weights.
    assert row["importance/mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("train", [{"ppo_epochs": 2}, {"minibatch_size": 8}], ids=str)
def test_a_step_s_second_update_has_the_ratio_to_the_policy_before_the_first(trained: Any, train: Any) -> None:
    (row,) = trained({"name": "grpo"}, train).read_metrics()
    assert row["ratio/max"] > 1e-3


def test_the_recorded_reward_is_the_one_that_is_trained_on(trained: Any) -> None:
    """Advantages without `scale_by_std` are the reward minus the group's mean, at every token."""
    shaping = {"clip": 4.0, "overlong_buffer": 6, "overlong_penalty": 2.0}
    folder = trained({"name": "grpo", "scale_by_std": False}, {}, **shaping)
    (metrics,) = folder.read_metrics()
    groups = defaultdict(list)
    ((_, path),) = folder.rollout_files()
    for row in pq.read_table(path).to_pylist():
        groups[row["problem_id"]].append((row["reward"], row["advantage_mean"]))
    for group in groups.values():
        mean = fmean(reward for reward, _ in group)
        assert [advantage for _, advantage in group] == pytest.approx([r - mean for r, _ in group], abs=1e-5)
    rewards = [reward for group in groups.values() for reward, _ in group]
    assert len(set(rewards)) > 3 and max(map(abs, rewards)) == 4, "some rewards differ and some are clipped"
    assert metrics["reward/mean"] == pytest.approx(fmean(rewards))
