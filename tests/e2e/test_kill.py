"""A run that is killed at any moment and resumed has bit-identical numbers."""

import json
import os
import random
import signal
import time

import pytest
from run_processes import contents, finish, run, same_weights, server, wait_for

from simplerl.config import validate_recipe
from simplerl.storage.atomic import TEMPORARY
from simplerl.storage.records import RunFolder

KILLS = 20
STEPS = 14


def make_recipe(tiny_model):
    return validate_recipe(
        {
            "seed": 3,
            "model": {"path": str(tiny_model)},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 32},
            "algorithm": {"name": "ppo", "kl_coef": 0.05, "kl_target": 0.1, "kl_horizon": 100},
            "train": {"steps": STEPS, "minibatch_size": 8, "ppo_epochs": 2, "critic_warmup_steps": 1},
            "actor": {"learning_rate": 1e-3},
            "critic": {"learning_rate": 1e-3},
            "eval": {"every": 3, "sets": [{"name": "arithmetic-test", "limit": 16}], "temperatures": [0.0, 1.0]},
            "checkpoint": {"every": 2, "keep": 2},
        }
    )


@pytest.fixture(scope="module")
def processes():
    return server()


def test_twenty_sigkills_at_random_moments_change_no_number(processes, tiny_model, tmp_path, capsys):
    recipe, undisturbed, torn = make_recipe(tiny_model), tmp_path / "undisturbed", tmp_path / "torn"
    started = time.monotonic()
    finish(processes, recipe, undisturbed)
    longest = time.monotonic() - started

    moments, rng = [], random.Random(0)
    while len(moments) < KILLS:
        child = processes.Process(target=run, args=(recipe, torn))
        child.start()
        child.join(rng.uniform(0.02, 0.35) * longest)
        if not child.is_alive():
            # The run ended before the kill: the other kills need a new run.
            assert child.exitcode == 0
            assert contents(torn) == contents(undisturbed)
            torn = tmp_path / f"torn-{len(moments)}"
            continue
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        leftovers = [path.name for path in torn.rglob(f"{TEMPORARY}*")]
        moments.append((len(RunFolder(torn).read_metrics()), len(leftovers)))
    finish(processes, recipe, torn)

    assert contents(torn) == contents(undisturbed)
    assert [row["step"] for row in RunFolder(torn).read_metrics()] == list(range(1, STEPS + 1))
    assert same_weights(torn, undisturbed)
    with capsys.disabled():
        print(f"\n{len(moments)} kills; lines of metrics and half-written files at each: {moments}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_resumes(processes, tiny_model, tmp_path, number):
    recipe, undisturbed, stopped = make_recipe(tiny_model), tmp_path / "undisturbed", tmp_path / "stopped"
    finish(processes, recipe, undisturbed)

    child = processes.Process(target=run, args=(recipe, stopped))
    child.start()
    wait_for(lambda: len(RunFolder(stopped).read_metrics()) >= 5)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 0
    done = len(RunFolder(stopped).read_metrics())
    assert 5 <= done < STEPS
    newest = max((stopped / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["step"] == done

    finish(processes, recipe, stopped)
    assert contents(stopped) == contents(undisturbed)


def test_a_run_resumes_from_the_checkpoint_before_a_torn_one(processes, tiny_model, tmp_path):
    recipe, undisturbed, torn = make_recipe(tiny_model), tmp_path / "undisturbed", tmp_path / "torn"
    finish(processes, recipe, undisturbed)
    child = processes.Process(target=run, args=(recipe, torn))
    child.start()
    wait_for(lambda: (torn / "checkpoints" / "step-000006").exists())
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    newest = max((torn / "checkpoints").iterdir())
    weights = newest / "actor.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    finish(processes, recipe, torn)

    assert contents(torn) == contents(undisturbed)
