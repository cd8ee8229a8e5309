"""A run folder says what was asked and what happened, through crashes, resumes and readers that come too early."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pyarrow.parquet as parquet
import pytest

from simplerl.config import Recipe
from simplerl.errors import ConfigError, SimpleRLError
from simplerl.storage import atomic
from simplerl.storage.folder import recipe_table
from simplerl.storage.records import COLUMNS, RunFolder, rollout_row
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict


@pytest.fixture
def make_recipe(tmp_path):
    """Recipes whose plug-ins are empty files of the test's own, so that no shipped one is loaded."""
    for name in ("source", "engine", "verifier", "reward", "algorithm"):
        (tmp_path / f"{name}.py").write_text("")
    own = {name: {"path": str(tmp_path / f"{name}.py")} for name in ("engine", "verifier", "reward", "algorithm")}

    def make(**blocks):
        data = {"source": {"path": str(tmp_path / "source.py")}}
        return Recipe.model_validate({"data": data} | own | blocks)

    return make


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def graded(text="so \\boxed{4}", advantage=0.5, **verdict):
    problem = Problem("gsm8k/7", "2+2?", "4", level=3, subject="sums")
    rollout = Rollout.single_turn("r", Prompt(problem, "Q: 2+2?", (1, 2, 3)), (5, 6), (-0.1, -0.2), text, "stop", 11)
    return rollout_row(12, GradedRollout(rollout, Verdict("correct", "4", "string"), 1.0), 2, advantage)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_create_then_open_keeps_the_recipe_and_one_environment_per_session(run, make_recipe):
    recipe = make_recipe(actor={"learning_rate": 5e-7}, rollout={"top_p": 1})
    assert not run.exists
    assert run.prepare(recipe, {"torch": "2.11"}) is False
    assert run.prepare(recipe, {"torch": "2.13"}) is True

    assert Recipe.model_validate(run.read_recipe()) == recipe
    assert run.read_environments() == [{"torch": "2.11"}, {"torch": "2.13"}]
    assert "steps" not in run.read_recipe()["train"], "None has no place in TOML"


def test_another_recipe_is_refused_with_every_differing_key(run, make_recipe):
    run.create(make_recipe(train={"steps": 40}, actor={"learning_rate": 1e-6}), {})
    other = make_recipe(train={}, actor={"learning_rate": 2e-6}, seed=3)

    with pytest.raises(ConfigError) as caught:
        run.open(other, {"torch": "new"})

    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        "  actor.learning_rate: stored 1e-06, given 2e-06",
        "  seed: stored 0, given 3",
        "  train.steps: stored 40, given '(not set)'",
    ]
    assert "--run-dir" in lines[4] and "--set" in lines[4] and "only track.* and checkpoint.* may change" in lines[4]
    assert run.read_environments() == [{}], "a refused session leaves no trace"


def test_tracking_and_checkpoints_may_change_and_the_change_is_kept(run, make_recipe):
    run.create(make_recipe(), {})
    run.open(make_recipe(track={"tensorboard": True}, checkpoint={"keep": 7}), {})
    assert run.read_recipe()["checkpoint"]["keep"] == 7


def test_a_setting_added_by_a_newer_version_is_named(run, make_recipe):
    recipe = make_recipe()
    run.create(recipe, {})
    table = recipe_table(recipe)
    del table["train"]["ppo_epochs"]
    import tomli_w

    (run.path / "recipe.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match=r"train\.ppo_epochs: stored '\(not set\)', given 1"):
        run.open(recipe, {})


def test_a_run_written_before_0_2_is_refused_in_one_line_and_its_metrics_are_read(run, make_recipe):
    recipe = make_recipe()
    run.create(recipe, {})
    table = recipe_table(recipe)
    table["train"]["epochs"] = table["train"].pop("ppo_epochs")
    import tomli_w

    (run.path / "recipe.toml").write_text(tomli_w.dumps(table))
    (run.path / "metrics.jsonl").write_text('{"step":1,"ratio/clip_share":0.25,"length/cut":160.0,"pack/fill":0.9}\n')
    with pytest.raises(ConfigError, match=r"written before 0\.2 \(train\.epochs\) and cannot be resumed") as caught:
        run.open(recipe, {})
    assert "\n" not in str(caught.value)
    assert run.read_metrics() == [
        {"step": 1, "ratio/clip_fraction": 0.25, "length/truncated": 160.0, "pack/token_utilization": 0.9}
    ]


def test_create_refuses_a_folder_that_holds_a_run(run, make_recipe):
    run.create(make_recipe(), {})
    with pytest.raises(ConfigError, match="already holds a run; name another folder with --run-dir"):
        run.create(make_recipe(), {})


def test_a_start_killed_before_the_recipe_was_written_starts_again(run, make_recipe):
    (run.path / "environment.json").write_text("[{}]")
    assert run.prepare(make_recipe(), {"torch": "2"}) is False
    assert run.read_environments() == [{"torch": "2"}]


def test_a_folder_without_a_run_is_an_error_in_words(run):
    with pytest.raises(ConfigError, match=r"holds no run: there is no recipe\.toml"):
        run.read_recipe()
    (run.path / "recipe.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match=r"recipe\.toml is damaged"):
        run.read_recipe()


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_keep_the_bits_of_floats_and_do_not_depend_on_the_order_of_names(run):
    values = {"b": 0.1 + 0.2, "a": 5e-324, "c/d": -0.0, "nan": math.nan}
    run.append_metrics({"step": 1, **values})
    run.append_metrics(dict(reversed(values.items())) | {"step": 1})

    one, two = (run.path / "metrics.jsonl").read_bytes().splitlines()
    assert one == two and one.startswith(b'{"step":1,"a":5e-324,"b":0.30000000000000004,')
    row = run.read_metrics()[0]
    assert [row[k].hex() for k in ("a", "b", "c/d")] == [values[k].hex() for k in ("a", "b", "c/d")]
    assert row["nan"] is None


def test_numpy_numbers_are_written_as_numbers(run):
    import numpy as np

    run.append_metrics({"step": 1, "x": np.float32(0.5), "n": np.int64(3)})
    assert run.read_metrics() == [{"step": 1, "x": 0.5, "n": 3}]


@pytest.mark.parametrize("torn", [b'{"step":2,"reward/me', b'{"step":2}', b"\0\0\0\n"])
def test_readers_see_no_torn_last_line(run, torn):
    assert run.read_metrics() == [] and run.read_evals() == []
    run.append_metrics({"step": 1})
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert run.read_metrics() == [{"step": 1}]
    run.truncate_after(2)
    run.append_metrics({"step": 2})
    assert run.read_metrics() == [{"step": 1}, {"step": 2}]


def test_damage_in_the_middle_is_named_not_skipped(run):
    (run.path / "metrics.jsonl").write_bytes(b'{"step":1}\n{"st\x00p":2\n{"step":3}\n')
    with pytest.raises(SimpleRLError, match=r"metrics\.jsonl, line 2 is damaged"):
        run.read_metrics()


def test_truncate_forgets_all_later_than_the_checkpoint(run):
    for step in range(5):
        run.append_metrics({"step": step, "x": step / 3})
        run.append_eval({"step": step, "set": "s", "temperature": 0.0})
        run.append_eval({"step": step, "set": "s", "temperature": 1.0})
        run.append_validation({"step": step, "loss": 2.0 - step / 10, "tokens": 640, "sequences": 4})
        run.write_rollouts(step, [graded()])
        run.write_eval_responses(step, "s", 0.0, [graded()])
        (run.path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (run.path / "checkpoints" / ".old-step-000003").mkdir()
    (run.path / "rollouts" / ".tmp-1-aa-step-000001.parquet").write_bytes(b"half")
    before = (run.path / "metrics.jsonl").read_bytes()
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step":')

    run.truncate_after(2)

    assert (run.path / "metrics.jsonl").read_bytes() == b"".join(before.splitlines(True)[:3])
    assert [row["step"] for row in run.read_evals()] == [0, 0, 1, 1, 2, 2]
    assert [(row["step"], row["loss"]) for row in run.read_validation()] == [(0, 2.0), (1, 1.9), (2, 1.8)]
    assert [step for step, _ in run.rollout_files()] == [step for step, _ in run.eval_files()] == [0, 1, 2]
    assert sorted(os.listdir(run.path / "checkpoints")) == [f"step-{step:06d}" for step in range(3)]
    assert not list(run.path.rglob(".tmp-*"))

    run.truncate_after(-1)
    assert run.read_metrics() == run.read_evals() == run.rollout_files() == run.eval_files() == []
    assert run.read_validation() == []


def test_truncating_an_empty_folder_does_nothing(run):
    run.truncate_after(-1)
    assert os.listdir(run.path) == []


# --- responses --------------------------------------------------------------------------------------------------------


def test_rollout_row_has_every_column_and_its_value():
    assert graded() == {
        "step": 12,
        "problem_id": "gsm8k/7",
        "sample_index": 2,
        "prompt": "Q: 2+2?",
        "question": "2+2?",
        "answer": "4",
        "text": "so \\boxed{4}",
        "prompt_tokens": 3,
        "response_tokens": 2,
        "finish_reason": "stop",
        "extracted": "4",
        "verdict": "correct",
        "method": "string",
        "reward": 1.0,
        "advantage_mean": 0.5,
        "policy_version": 11,
        "level": 3,
        "subject": "sums",
    }
    assert list(graded()) == list(COLUMNS)


def test_responses_come_back_from_parquet(run):
    hostile = "nul \x00, escape \x1b[31m, surrogate \ud800, emoji 🦜, ünï"
    rows = [graded(), graded(text=hostile, advantage=None)]
    path = run.write_rollouts(12, rows)

    assert path == run.path / "rollouts" / "step-000012.parquet"
    one, two = parquet.read_table(path).to_pylist()
    assert one == rows[0]
    assert two["text"] == hostile.replace("\ud800", "?") and two["advantage_mean"] is None
    assert parquet.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_same_responses_make_the_same_file(run):
    first = run.write_rollouts(1, [graded()] * 50).read_bytes()
    assert run.write_rollouts(1, [graded()] * 50).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "temperature", "file"),
    [("math500", 0.0, "math500-t0"), ("own/set x", 0.6, "own_set_x-t0.6"), ("../up", 1.0, ".._up-t1")],
)
def test_eval_responses_know_their_set_and_temperature(run, name, temperature, file):
    path = run.write_eval_responses(12, name, temperature, [graded(), graded()])
    assert path == run.path / "evals" / f"step-000012-{file}.parquet"
    rows = parquet.read_table(path).to_pylist()
    assert [(row["set"], row["temperature"]) for row in rows] == [(name, temperature)] * 2
    assert run.eval_files() == [(12, path)]


def test_no_responses_still_make_a_readable_file(run):
    assert parquet.read_table(run.write_rollouts(1, [])).column_names == list(COLUMNS)


def test_a_column_nobody_knows_is_an_error(run):
    with pytest.raises(ValueError, match="no column rewrad; known: step, problem_id"):
        run.write_rollouts(1, [{"step": 1, "rewrad": 1.0}])
    assert run.rollout_files() == []


# --- the lock ---------------------------------------------------------------------------------------------------------

HOLD = """
    import sys, os, time
    from simplerl.storage.records import RunFolder
    with RunFolder(sys.argv[1]).lock():
        if len(sys.argv) > 2 and os.fork() == 0:
            time.sleep(60)
        print(os.getpid(), flush=True)
        time.sleep(60)
"""


def hold(folder, *extra):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(folder), *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_two_processes_cannot_train_into_one_folder(run):
    with hold(run.path) as child:
        pid = child.stdout.readline().strip()
        with (
            pytest.raises(SimpleRLError, match=f"in use by process {pid} on .*name another folder"),
            run.lock(timeout=0),
        ):
            pass
        child.kill()
    with run.lock():
        pass


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(run):
    with hold(run.path, "fork") as child:
        pid = int(child.stdout.readline())
        try:
            child.kill()
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with run.lock(timeout=1.0):
                pass
        finally:
            os.killpg(pid, 9)  # the orphan is in the child's own process group


def test_the_lock_is_free_again_after_an_error(run):
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock(timeout=0):
        pass


# --- disk full --------------------------------------------------------------------------------------------------------


def test_full_disk_while_responses_are_written_leaves_nothing_half_written(run, monkeypatch):
    def full(table, where, **_):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(atomic.DiskFullError, match=r"step-000001\.parquet"):
        run.write_rollouts(1, [graded()])
    assert os.listdir(run.path / "rollouts") == []


def test_environment_that_is_damaged_does_not_stop_a_run(run, make_recipe):
    run.create(make_recipe(), {"torch": "1"})
    (run.path / "environment.json").write_text("[{")
    run.open(make_recipe(), {"torch": "2"})
    assert json.loads((run.path / "environment.json").read_text()) == [{"torch": "2"}]
