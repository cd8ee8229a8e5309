from pathlib import Path

import pytest
from synthetic_runs import write_run, write_sft_run

from simplerl.report.dynamics import dynamics_table, is_quickstart, length_dynamics, training_seconds
from simplerl.report.run_data import RunData, read_run


def evaluations(lengths):
    return [{"step": 5 * i, "length": length} for i, length in enumerate(lengths)]


def test_length_dynamics_are_means_of_three_evaluations():
    # Windows: (90+60+60)/3 = 70, (60+60+30)/3 = 50, (60+30+60)/3 = 50, (30+60+120)/3 = 70, (60+120+120)/3 = 100.
    found = length_dynamics(evaluations([90, 60, 60, 30, 60, 120, 120]))
    # Two windows are equally low: the earlier one, whose middle evaluation is the third, at step 10.
    assert found == pytest.approx((70, 50, 10, 100))
    assert found.fall == pytest.approx(2 / 7)
    assert found.rise == pytest.approx(1.0)


def test_length_that_only_grows_has_no_fall():
    found = length_dynamics(evaluations([10, 20, 30, 40]))
    assert found == pytest.approx((20, 20, 5, 30))
    assert found.fall == 0


def test_two_evaluations_are_too_few_for_length_dynamics():
    assert length_dynamics(evaluations([10, 20])) is None


def test_training_seconds_add_up():
    run = RunData(Path("r"), metrics=tuple({"step": i, "time/total": 1.5} for i in range(1, 5)))
    assert training_seconds(run) == 6.0


def test_the_table_of_a_run_that_shows_everything(tmp_path):
    checks = dynamics_table(read_run(write_run(tmp_path / "run")))
    assert len(checks) == 11
    assert all(check.holds for check in checks.values())
    assert checks["problems"].shown == "500\N{NO-BREAK SPACE}problems"


def test_the_claims_are_of_reinforcement_learning_from_the_embedded_model(tmp_path):
    assert is_quickstart(read_run(write_run(tmp_path / "zero", steps=5)))
    assert not is_quickstart(read_run(write_run(tmp_path / "other", steps=5, model="runs/warm-up/export")))
    assert not is_quickstart(read_run(write_sft_run(tmp_path / "warm-up", steps=5)))
    hard = ({"step": 0, "set": "arithmetic-hard", "temperature": 0.0},)
    assert not is_quickstart(RunData(Path("r"), recipe={"model": {"path": "tiny-math-base"}}, evals=hard))


def eval_row(step, temperature=1.0, **values):
    row = {"step": step, "set": "arithmetic-test", "temperature": temperature, "n": 500, "accuracy": 0.0}
    return row | {"length": 100.0, "code": 0.0, "reflection": 0.0, "unboxed": 0.0} | values


@pytest.mark.parametrize(
    ("key", "first", "last", "holds"),
    [
        ("greedy", {"accuracy": 0.3}, {"accuracy": 0.7}, True),  # 0.7 - 0.3 is below 0.4 in floating point
        ("greedy", {"accuracy": 0.3}, {"accuracy": 0.698}, False),
        ("sampled", {"accuracy": 0.1}, {"accuracy": 0.45}, True),
        ("sampled", {"accuracy": 0.1}, {"accuracy": 0.448}, False),
        ("code_first", {"code": 0.30}, {}, True),
        ("code_first", {"code": 0.298}, {}, False),
        ("code_last", {}, {"code": 0.018}, True),
        ("code_last", {}, {"code": 0.02}, False),
        ("unboxed_last", {}, {"unboxed": 0.02}, False),
        ("reflection_first", {"reflection": 0.10}, {}, False),
        ("reflection_last", {}, {"reflection": 0.5}, True),
        ("reflection_last", {}, {"reflection": 0.498}, False),
    ],
)
def test_each_claim_at_its_bound(key, first, last, holds):
    rows = [eval_row(0, heat, **first) for heat in (0.0, 1.0)] + [eval_row(9, heat, **last) for heat in (0.0, 1.0)]
    assert dynamics_table(RunData(Path("r"), evals=tuple(rows)))[key].holds is holds


@pytest.mark.parametrize(("lowest", "final", "fall", "rise"), [(90, 103.5, True, True), (90.5, 103.5, False, False)])
def test_length_claims_at_their_bounds(lowest, final, fall, rise):
    # Constant for three evaluations at a time, so that the windows hold the plateaus.
    lengths = [100] * 3 + [lowest] * 3 + [final] * 3
    rows = tuple(eval_row(step, length=length) for step, length in enumerate(lengths))
    checks = dynamics_table(RunData(Path("r"), evals=rows))
    assert (checks["length_fall"].holds, checks["length_rise"].holds) == (fall, rise)


def test_the_time_claim():
    def table(seconds):
        return dynamics_table(RunData(Path("r"), metrics=({"step": 1, "time/total": seconds},)))

    assert table(600.0)["seconds"].holds
    assert not table(600.5)["seconds"].holds
    assert list(table(1.0)) == ["seconds"]
