"""A run whose engine sleeps while the learner works equals a run whose engine stays awake.

The embedded engine raises if it gets a request while it sleeps, so a missing weight sync ends a run.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from run_processes import contents, same_weights
from test_cluster import ASLEEP, make_recipe
from test_sft import make_recipe as make_sft

from simplerl.rollouts.weight_sync import WeightSync
from simplerl.storage.records import RunFolder
from simplerl.train.build import rl, services
from simplerl.train.run import train

EVALS = {"every": 1, "sets": [{"name": "arithmetic-test", "limit": 4}], "max_tokens": 8}


class Recorder:
    """Wraps an object and records the calls of some of its methods."""

    def __init__(self, inner, names, calls):
        self.inner, self.names, self.calls = inner, names, calls

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if name not in self.names:
            return value

        def recorded(*arguments, **named):
            self.calls.append(name)
            return value(*arguments, **named)

        return recorded


def with_sleep(recipe, **changes):
    return recipe.model_validate(recipe.model_dump() | {"engine": ASLEEP} | changes)


def test_the_engine_sleeps_from_the_rollouts_to_the_next_weight_sync(tiny_model):
    """The order is the contract: an engine that slept later would hold its memory while the learner needs it."""
    recipe = with_sleep(make_recipe(tiny_model))
    job = rl.reinforcement_job(recipe, services.load_tokenizer(recipe), print)
    trainer, calls = job.build(lambda name, total: nullcontext()), []
    engine = Recorder(trainer.engine, ("submit", "sleep", "load_weights"), calls)
    learner = Recorder(trainer.learner, ("score", "train", "weights", "logprobs"), calls)
    rollouts = replace(
        trainer.rollouts,
        collector=replace(trainer.rollouts.collector, engine=engine),
        weights=WeightSync(recipe, engine, learner),
    )
    trainer = replace(trainer, rollouts=rollouts, learner=learner)
    for step in (1, 2):  # step 1 trains the critic only
        calls.clear()
        trainer.step(step)
        assert calls == ["submit", "sleep", "score", "train", "weights", "load_weights", "submit", "logprobs"]
    trainer.close()


class SessionKilled(Exception):
    pass


@pytest.mark.parametrize("killed_after", [None, 3], ids=["uninterrupted", "resumed"])
@pytest.mark.parametrize("kind", ["train", "sft"])
def test_a_sleeping_engine_changes_no_number(tiny_model, tmp_path, monkeypatch, kind, killed_after):
    """With evaluations at every step, a step that trains the critic only, and a resume from a checkpoint."""
    if kind == "train":
        recipe = make_recipe(tiny_model)
        awake = recipe.model_validate(recipe.model_dump() | {"eval": EVALS})
    else:
        awake = make_sft(tiny_model, eval={**EVALS, "every": 2})
        awake = awake.model_validate(awake.model_dump() | {"train": awake.train.model_copy(update={"steps": 6})})
    expected = train(awake, tmp_path / "awake", plain=True)
    append = RunFolder.append_metrics
    if killed_after is not None:

        def append_or_die(self, row):
            if row["step"] == killed_after:
                raise SessionKilled
            append(self, row)

        monkeypatch.setattr(RunFolder, "append_metrics", append_or_die)
        with pytest.raises(SessionKilled):
            train(with_sleep(awake), tmp_path / "asleep", plain=True)
        monkeypatch.setattr(RunFolder, "append_metrics", append)
    folder = train(with_sleep(awake), tmp_path / "asleep", plain=True)
    assert contents(folder) == contents(expected) and same_weights(folder, expected)
