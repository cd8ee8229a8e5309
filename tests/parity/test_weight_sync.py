"""The weight sync check finds an engine that does not hold the learner's weights."""

import engine_models as tiny
import pytest
import torch
from learner_cases import make_learner, make_recipe

from simplerl.engines.base import generate
from simplerl.errors import EngineError
from simplerl.rollouts.weight_sync import weight_sync_check

PROMPT = tiny.prompt([5, 6, 7, 8])


@pytest.fixture
def folder(tmp_path):
    return tiny.save(tiny.model(scale=0.1), tmp_path)


def pair(folder, *settings):
    recipe = make_recipe(folder, list(settings))
    learner, _ = make_learner(folder, list(settings))
    return recipe, tiny.engine(folder), learner


@pytest.mark.parametrize("temperature", ["sampling", "one"])
def test_an_engine_with_the_learners_weights_passes(folder, temperature):
    recipe, engine, learner = pair(folder, f"train.logprob_temperature={temperature}")
    engine.load_weights(learner.weights(), version=3)
    found = weight_sync_check(recipe, engine, learner, PROMPT, 3)
    assert 0 <= found["sync/mean"] <= found["sync/max"] < 1e-5


def test_weights_of_the_update_before_fail_the_check(folder):
    """In float32 one small optimiser step is enough."""
    recipe, engine, learner = pair(folder)
    engine.load_weights(learner.weights(), version=3)
    with torch.no_grad():
        for parameter in learner.actor.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    with pytest.raises(EngineError, match=r"does not hold the learner's weights of step 3.*probe_limit=0\.001"):
        weight_sync_check(recipe, engine, learner, PROMPT, 3)
    engine.load_weights(learner.weights(), version=3)
    weight_sync_check(recipe, engine, learner, PROMPT, 3)


def test_another_version_fails_the_check(folder):
    recipe, engine, learner = pair(folder)
    engine.load_weights(learner.weights(), version=2)
    with pytest.raises(EngineError, match="names version 2"):
        weight_sync_check(recipe, engine, learner, PROMPT, 3)


def test_the_check_can_be_switched_off_and_its_limit_set(folder):
    recipe, engine, learner = pair(folder, "train.probe_tokens=0")
    assert weight_sync_check(recipe, engine, learner, PROMPT, 9) == {}
    recipe, engine, learner = pair(folder, "train.probe_limit=1e-12")
    engine.load_weights(learner.weights(), version=1)
    with pytest.raises(EngineError, match="probe_limit=1e-12"):
        weight_sync_check(recipe, engine, learner, PROMPT, 1)


def test_the_check_changes_no_response(folder):
    recipe, engine, learner = pair(folder)
    asked = [tiny.request(f"r{i}", ids, seed=i) for i, ids in enumerate(tiny.prompts(6))]
    engine.load_weights(learner.weights(), version=1)
    before = [(r.token_ids, r.sampled_logprobs) for r in generate(engine, asked)]
    weight_sync_check(recipe, engine, learner, PROMPT, 1)
    assert [(r.token_ids, r.sampled_logprobs) for r in generate(engine, asked)] == before
