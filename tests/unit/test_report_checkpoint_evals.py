from pathlib import Path

import pytest
from synthetic_responses import response, write_eval
from synthetic_runs import write_run

from simplerl.errors import DataError
from simplerl.report.checkpoint_evals import with_evaluations
from simplerl.report.passes import pass_curves
from simplerl.report.response_files import eval_files
from simplerl.report.run_data import EvalKey, read_run

PLAN = """model = "{model}@{step}"
step = {step}

[[parts]]
name = "aime"
benchmark = "aime24"
temperature = 1.0
n = 4
"""


def write_evaluation(folder: Path, model: Path, step: int, right: int) -> Path:
    (folder / "responses" / "aime").mkdir(parents=True)
    (folder / "eval.toml").write_text(PLAN.format(model=model, step=step))
    rows = [response("p", sample_index=i, verdict="correct" if i < right else "wrong") for i in range(4)]
    written = write_eval(folder, step, "aime", 1.0, rows)
    written.rename(folder / "responses" / "aime" / "all.parquet")
    return folder


@pytest.fixture
def run(tmp_path):
    return read_run(write_run(tmp_path / "run", steps=10))


@pytest.fixture
def evaluations(run, tmp_path):
    folder = tmp_path / "evals"
    for step, right in ((4, 1), (8, 3)):
        write_evaluation(folder / f"step-{step:06d}", run.path, step, right)
    return folder


def test_checkpoints_evaluated_afterwards_are_points_of_the_curves(run, evaluations):
    (found,) = with_evaluations([run], [evaluations])
    series = found.evaluation("accuracy", 1.0, "aime")
    assert (series.steps.tolist(), series.values.tolist()) == ([4, 8], [0.25, 0.75])
    assert found.main_set == run.main_set
    assert pass_curves(found)[EvalKey("aime", 1.0)][2].values.tolist() == [0.5, 1.0]
    assert len(eval_files(found)) == len(eval_files(run)) + 2


def test_one_eval_folder_can_be_given_too(run, evaluations):
    (found,) = with_evaluations([run], [evaluations / "step-000004"])
    assert found.evaluation("length", 1.0, "aime").values.tolist() == [7.0]


def test_the_runs_own_evaluation_counts(run, evaluations):
    once = with_evaluations([run], [evaluations])
    assert with_evaluations(once, [evaluations]) == once


def test_an_evaluation_of_another_run_is_refused(run, tmp_path):
    other = write_evaluation(tmp_path / "other", Path("runs/elsewhere"), 4, 1)
    with pytest.raises(DataError, match=r"elsewhere@4, no checkpoint of run"):
        with_evaluations([run], [other])
    with pytest.raises(DataError, match="holds no evaluation"):
        with_evaluations([run], [tmp_path / "nothing"])
