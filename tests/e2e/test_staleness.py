"""Sampling while the learner trains: the age of the weights does not depend on timing, kills and resumes."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from run_processes import contents, finish, run, same_weights, server, wait_for

from simplerl.batch.batch import ScoredBatch, TrainBatch
from simplerl.config import validate_recipe
from simplerl.storage.records import RunFolder
from simplerl.train.trainer import weigh_by_importance

STEPS = 7


def make_recipe(tiny_model, staleness, **train):
    return validate_recipe(
        {
            "seed": 3,
            "model": {"path": str(tiny_model)},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 32},
            "algorithm": {"name": "ppo", "kl_coef": 0.05},
            "train": {"steps": STEPS, "minibatch_size": 8, "cpu_threads": 1, "staleness": staleness, **train},
            "actor": {"learning_rate": 3e-3},
            "critic": {"learning_rate": 1e-3},
            "engine": {"name": "embedded", "cpu_threads": 1},
            "eval": {"every": 3, "sets": [{"name": "arithmetic-test", "limit": 8}]},
            "checkpoint": {"every": 2},
        }
    )


def trained(recipe, folder):
    from simplerl.train.run import train

    return train(recipe, folder, plain=True)


def versions(folder):
    """Versions of the weights that sampled each step's responses."""
    rows = contents(folder)["tables"]
    steps = {name: {row["policy_version"] for row in table} for name, table in rows.items() if "rollouts" in name}
    return [steps[name] for name in sorted(steps)]


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Uninterrupted runs, by staleness."""
    path = tmp_path_factory.mktemp("runs")
    return {lag: trained(make_recipe(tiny_model, lag), path / str(lag)) for lag in (0, 1, 2)}


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_every_batch_is_sampled_by_weights_of_the_given_age(runs, lag):
    assert versions(runs[lag]) == [{max(0, step - 1 - lag)} for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("lag", [1, 2])
def test_metrics_show_the_staleness_and_its_correction(runs, lag):
    rows = RunFolder(runs[lag]).read_metrics()
    assert [row["staleness"] for row in rows] == [min(step - 1, lag) for step in range(1, STEPS + 1)]
    # The first batch is trained on by the weights that sampled it, later ones by newer weights.
    assert rows[0]["importance/mean"] == pytest.approx(1, abs=1e-5)
    assert all(row["importance/mean"] != 1 and row["mismatch/mean"] > 1e-4 for row in rows[2:])
    assert rows[0]["mismatch/mean"] < 1e-5
    probed = [row["step"] for row in rows if "sync/mean" in row]
    # The probe needs an idle engine: with staleness 1 at every sync, with 2 only after an evaluation.
    assert probed == ([2, 3, 5, 6, 7] if lag == 1 else [3, 6, 7])


@pytest.mark.parametrize(("mode", "expected"), [("truncated", [1.0, 4.0, -0.5]), ("masked", [1.0, 0.0, -0.5])])
def test_advantages_are_multiplied_by_limited_ratios(tiny_model, mode, expected):
    """Ratios 1, 4 and 0.5 with advantages 1, 2 and -1, worked by hand. The limit of 2 truncates or masks the 4."""
    from learner_cases import make_batch

    batch = make_batch(sequences=3).extend(ScoredBatch, old_logprobs=None, ref_logprobs=None, values=None)
    tokens = len(batch.sampled_logprobs)
    ratios, advantages = torch.ones(tokens), torch.ones(tokens)
    ratios[1:3], advantages[1:3] = torch.tensor([4.0, 0.5]), torch.tensor([2.0, -1.0])
    credited = batch.extend(TrainBatch, advantages=advantages, returns=None)
    credited = replace(credited, old_logprobs=credited.sampled_logprobs + ratios.log())
    recipe = make_recipe(tiny_model, 1, importance=mode)
    weighted, metrics = weigh_by_importance(credited, recipe.importance, recipe.train.importance_limit)
    assert weighted.advantages[:3].tolist() == pytest.approx(expected, abs=1e-6)
    assert (weighted.advantages[3:] == 1).all()
    assert metrics["importance/limited"] == pytest.approx(1 / tokens)
    untouched, none = weigh_by_importance(credited, make_recipe(tiny_model, 0).importance, 2.0)
    assert untouched is credited and none == {}


@pytest.mark.parametrize("lag", [1, 2])
def test_staleness_changes_nothing_if_the_weights_never_change(tiny_model, tmp_path, lag):
    """An actor that is not trained gives the same samples and scores, bit for bit, with and without prefetching."""
    frozen = {"critic_warmup_steps": STEPS, "importance": "none"}
    on_demand, prefetched = (
        trained(make_recipe(tiny_model, each, **frozen), tmp_path / str(each)) for each in (0, lag)
    )
    one, other = contents(on_demand), contents(prefetched)
    for row in one["metrics"] + other["metrics"]:
        for name in [name for name in row if name.startswith(("sync/", "staleness"))]:
            del row[name]
    for table in [*one["tables"].values(), *other["tables"].values()]:
        for row in table:
            del row["policy_version"]
    assert one == other


def test_the_weights_of_a_batch_do_not_depend_on_timing(runs, tiny_model, tmp_path, monkeypatch):
    """Neither a slow learner nor a slow engine changes a number."""
    from simplerl.learner.learner import LocalLearner
    from simplerl.rollouts.collect import RolloutCollector

    for part, name in ((LocalLearner, "optimizer_step"), (RolloutCollector, "collect")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, delayed(getattr(part, name)))
            assert contents(trained(make_recipe(tiny_model, 2), tmp_path / name)) == contents(runs[2])


def delayed(function):
    def slow(*arguments, **named):
        time.sleep(0.2)
        return function(*arguments, **named)

    return slow


def test_a_run_that_is_killed_and_resumed_is_bit_identical(tiny_model, tmp_path):
    """Checkpoints hold prefetched batches, because the weights that sampled them no longer exist."""
    processes, recipe = server(), make_recipe(tiny_model, 2)
    undisturbed, torn = tmp_path / "undisturbed", tmp_path / "torn"
    finish(processes, recipe, undisturbed)
    for done in (3, 4, 6):  # checkpoints are written after every second step
        child = processes.Process(target=run, args=(recipe, torn))
        child.start()
        wait_for(lambda done=done: len(RunFolder(torn).read_metrics()) >= done)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert list(torn.glob("checkpoints/*/prefetched.safetensors"))
    finish(processes, recipe, torn)
    assert contents(torn) == contents(undisturbed)
    assert same_weights(torn, undisturbed)


def test_a_signal_leaves_a_checkpoint_with_prefetched_batches(runs, tiny_model, tmp_path):
    processes, recipe, folder = server(), make_recipe(tiny_model, 2), tmp_path / "stopped"
    child = processes.Process(target=run, args=(recipe, folder))
    child.start()
    while len(RunFolder(folder).read_metrics()) < 3:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 0
    newest = max((folder / "checkpoints").iterdir())
    assert (newest / "prefetched.safetensors").is_file() or len(RunFolder(folder).read_metrics()) == STEPS
    finish(processes, recipe, folder)
    assert contents(folder)["metrics"] == contents(runs[2])["metrics"]
