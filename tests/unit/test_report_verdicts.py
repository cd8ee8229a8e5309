from dataclasses import replace

import pytest
from synthetic_responses import response, write_eval, write_rollouts

from simplerl.report import verdicts
from simplerl.report.run_data import RunData
from simplerl.report.verdicts import audit_sample, method_rows


@pytest.fixture
def run(tmp_path):
    rows = [response("a")] * 3 + [response("b", verdict="wrong", extracted="2", text="It is \\boxed{2}.")]
    rows += [response("c", verdict="no_answer", extracted=None, method="no box", text="It is 7.")]
    write_rollouts(tmp_path, 1, rows)
    write_rollouts(tmp_path, 2, [response("a", verdict="error", method="timeout")])
    write_eval(tmp_path, 2, "s", 0.0, [response("a"), response("d", verdict="wrong", extracted="50", answer="50\\%")])
    return RunData(tmp_path)


def test_verdicts_are_counted_by_method_in_training_and_evaluations(run):
    assert method_rows([run]) == [("box, value", (4, 2, 0, 0)), ("no box", (0, 0, 1, 0)), ("timeout", (0, 0, 0, 1))]
    assert method_rows([run, run])[0] == ("box, value", (8, 4, 0, 0))
    assert method_rows([RunData(run.path / "nothing")]) == []


def test_the_audit_names_the_pairs_that_looser_comparisons_accept(run):
    found = audit_sample([run])
    assert (found.judged, found.found) == (3, 1)
    assert [(pair.extracted, pair.gold, pair.times, pair.first) for pair in found.pairs] == [
        ("50", "50\\%", 1, "step 2, d")
    ]


def test_pairs_are_counted_over_runs_the_most_frequent_first(run, tmp_path):
    rows = [response(f"p{i}", verdict="wrong", extracted="50", answer="50\\%") for i in range(3)]
    rows += [response("q", verdict="wrong", extracted="1,000", answer="1000")]
    write_rollouts(tmp_path, 3, rows)
    found = audit_sample([run, run])
    assert (found.pairs[0].extracted, found.pairs[0].times) == ("50", 8)
    assert found.pairs[0].first.startswith(f"{run.name}, step ")


def test_the_audit_is_bounded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "MOST_JUDGED", 5)
    write_rollouts(tmp_path, 4, [response(f"p{i}", verdict="wrong", extracted="2") for i in range(100)])
    assert audit_sample([run]).judged == 2 + 0 + 5 + 1


def test_the_audit_leaves_out_what_is_not_mathematics(run):
    programs = replace(run, recipe={"verifier": {"name": "python-tests"}})
    assert audit_sample([run]) == (3, 1, audit_sample([run]).pairs, [], True)
    assert audit_sample([programs]) == (0, 0, [], ["python-tests"], False)
    both = audit_sample([programs, run])
    assert (both.judged, both.found, both.left_out, both.possible) == (3, 1, ["python-tests"], True)
