import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run, write_sft_run

from simplerl.errors import DataError, SimpleRLError
from simplerl.report.run_data import RunData, Series, experiments, extremes_of, mean_of, read_run, same_experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "seed-0", steps=20)


def lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_run(folder: Path, metrics=(), evals=(), validation=()) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text("seed = 0\n")
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "evals.jsonl", evals)
    lines(folder / "validation.jsonl", validation)
    return folder


def test_a_run_is_read_whole(folder):
    run = read_run(folder)
    assert (run.name, run.last_step, len(run.metrics), len(run.evals)) == ("seed-0", 20, 20, 15)
    assert (run.main_set, run.main_temperature, run.has_greedy) == ("arithmetic-test", 1.0, True)
    assert run.recipe["train"]["steps"] == 20
    assert run.environments[0]["device"] == {"kind": "cpu", "threads": 2}
    assert run.evaluation("length").steps.tolist() == [0, 5, 10, 15, 20]
    assert run.evaluation("accuracy", 0.0, "arithmetic-hard").steps.size == 5


def test_a_line_being_written_is_not_read_yet(tmp_path):
    run = tiny_run(tmp_path / "run", [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "a": 3')
    assert read_run(run).metric("a").values.tolist() == [1.0, 2.0]


def test_a_damaged_line_is_named(tmp_path):
    run = tiny_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(SimpleRLError, match=r"metrics\.jsonl, line 2"):
        read_run(run)


def test_a_step_written_twice_counts_once_and_the_last_counts(tmp_path):
    metrics = [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 1, "a": 9.0}]
    evals = [{"step": 0, "set": "s", "temperature": t, "accuracy": t} for t in (0.0, 1.0, 0.0)]
    run = read_run(tiny_run(tmp_path / "run", metrics, evals))
    assert run.metric("a") == (pytest.approx([1, 2]), pytest.approx([9.0, 2.0]))
    assert len(run.evals) == 2


def test_null_and_missing_values_leave_a_gap(tmp_path):
    rows = [{"step": 1, "a": None}, {"step": 2}, {"step": 3, "a": 3.0}]
    run = read_run(tiny_run(tmp_path / "run", rows))
    assert run.metric("a").steps.tolist() == [3]
    assert run.metric("b").steps.size == 0


def test_a_folder_that_is_no_run_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"not a run folder.*simplerl train"):
        read_run(tmp_path)


def test_a_run_without_a_finished_step_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished step yet"):
        read_run(tiny_run(tmp_path / "run"))


def test_fine_tuning_is_read_with_its_validation(tmp_path):
    run = read_run(write_sft_run(tmp_path / "warm-up", steps=20))
    assert (run.kind, run.last_step, run.main_temperature) == ("sft", 20, 0.0)
    assert run.validated("loss").steps.tolist() == [0, 5, 10, 15, 20]
    assert run.validated("loss").values[0] == run.validation[0]["loss"]
    assert run.metric("loss/sft").steps.size == 20 and run.metric("reward/mean").steps.size == 0


def test_a_run_may_have_nothing_but_a_validation_yet(tmp_path):
    rows = [{"step": 0, "loss": 9.0}, {"step": 5, "loss": None}, {"step": 0, "loss": 2.5}]
    run = read_run(tiny_run(tmp_path / "run", validation=rows))
    assert (run.kind, run.last_step, run.keys) == ("train", 5, ())
    assert run.validated("loss") == (pytest.approx([0]), pytest.approx([2.5]))


def test_an_average_is_over_the_sets_that_are_named():
    rows = [("a", 0, 1.0), ("b", 0, 3.0), ("a", 5, 2.0)]
    evals = tuple({"step": step, "set": name, "temperature": 0.0, "accuracy": value} for name, step, value in rows)
    run = RunData(Path("r"), evals=evals)
    assert run.average("accuracy", 0.0) == (pytest.approx([0]), pytest.approx([2.0]))
    assert run.average("accuracy", 0.0, ["a"]).values.tolist() == [1.0, 2.0]
    assert run.average("accuracy", 0.0, ["a", "c"]).steps.size == 0


def test_the_mean_is_over_the_steps_all_runs_have():
    one = Series(np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 3.0]))
    two = Series(np.array([0.0, 5.0]), np.array([3.0, 6.0]))
    assert mean_of([one, two]) == (pytest.approx([0, 5]), pytest.approx([2.0, 4.0]))
    assert mean_of([]).steps.size == 0


def test_the_extremes_are_over_the_same_steps():
    one = Series(np.array([0.0, 5.0, 10.0]), np.array([1.0, 9.0, 3.0]))
    two = Series(np.array([5.0, 10.0, 15.0]), np.array([4.0, 6.0, 0.0]))
    low, high = extremes_of([one, two])
    assert (low.steps.tolist(), low.values.tolist(), high.values.tolist()) == ([5, 10], [4, 3], [9, 6])
    assert extremes_of([one, Series(np.array([]), np.array([]))])[0].steps.size == 0


def test_runs_of_one_recipe_are_one_group():
    recipes = [{"seed": 0, "a": 1}, {"seed": 0, "a": 2}, {"seed": 1, "a": 1}]
    runs = [RunData(Path(str(i)), recipe=recipe) for i, recipe in enumerate(recipes)]
    assert experiments(runs) == [[runs[0], runs[2]], [runs[1]]]


def test_runs_that_differ_in_their_seed_alone_are_one_experiment():
    recipes = [{"seed": 0, "train": {"steps": 5}}, {"seed": 1, "train": {"steps": 5}, "track": {}}, {"train": {}}]
    first, second, third = (RunData(Path(str(i)), recipe=recipe) for i, recipe in enumerate(recipes))
    assert same_experiment([first, second])
    assert not same_experiment([first, third])


def test_analysis_loads_no_torch():
    code = "import sys, simplerl.report.live, simplerl.cli.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
