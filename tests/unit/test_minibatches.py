"""The split of a step's responses into minibatches."""

from itertools import chain
from types import SimpleNamespace

import pytest

from simplerl.config import validate_recipe
from simplerl.train.trainer import RLTrainer

pytestmark = pytest.mark.unit


def rows(step=1, seed=0, **train):
    recipe = validate_recipe(
        {
            "seed": seed,
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4},
            "algorithm": {"name": "grpo"},
            "train": {"minibatch_size": 8, "ppo_epochs": 2, **train},
            "actor": {"learning_rate": 1e-3},
        }
    )
    found = RLTrainer.minibatches(SimpleNamespace(recipe=recipe), step)  # type: ignore[arg-type]
    return [None if each is None else each.tolist() for each in found]


def test_every_response_is_in_one_minibatch_of_each_epoch():
    found = rows()
    assert [len(each) for each in found] == [8] * 6
    epochs = [*chain(*found[:3])], [*chain(*found[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))


def test_the_order_depends_on_seed_step_and_epoch():
    first, second = rows()[:3], rows()[3:]
    assert rows() == [*first, *second]
    assert first not in (second, rows(step=2)[:3], rows(seed=1)[:3], [sorted(each) for each in first])


def test_a_minibatch_of_every_response_keeps_the_batch_unshuffled():
    assert rows(minibatch_size=24) == [None, None]
