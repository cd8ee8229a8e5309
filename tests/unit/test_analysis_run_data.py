import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from simplerl.analysis.run_data import RunData, Series, mean_of, read_run, same_experiment
from simplerl.errors import DataError, SimpleRLError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "seed-0", steps=20)


def lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_run(folder: Path, metrics=(), evals=()) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text("seed = 0\n")
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "evals.jsonl", evals)
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


def test_responses_are_those_of_the_step_and_temperature(folder):
    run = read_run(folder)
    rows = run.eval_responses(20, 0.0)
    assert [row["problem_id"] for row in rows[:2]] == ["arithmetic/0", "arithmetic/1"]
    assert len(rows) == 40
    assert rows != run.eval_responses(20, 1.0)
    assert run.eval_responses(7, 0.0) == []


def test_the_mean_is_over_the_steps_all_runs_have():
    one = Series(np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 3.0]))
    two = Series(np.array([0.0, 5.0]), np.array([3.0, 6.0]))
    assert mean_of([one, two]) == (pytest.approx([0, 5]), pytest.approx([2.0, 4.0]))
    assert mean_of([]).steps.size == 0


def test_runs_that_differ_in_their_seed_alone_are_one_experiment():
    recipes = [{"seed": 0, "train": {"steps": 5}}, {"seed": 1, "train": {"steps": 5}, "track": {}}, {"train": {}}]
    first, second, third = (RunData(Path(str(i)), recipe=recipe) for i, recipe in enumerate(recipes))
    assert same_experiment([first, second])
    assert not same_experiment([first, third])


def test_analysis_loads_no_torch():
    code = "import sys, simplerl.analysis.report, simplerl.cli.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
