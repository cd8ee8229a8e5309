import json
import operator

import orjson
import pytest
from synthetic_evals import response, rows_of, write_eval
from synthetic_runs import write_run, write_sft_run

from simplerl.errors import ConfigError, DataError, SimpleRLError
from simplerl.report.eval_data import read_evaluation
from simplerl.stats.scores import score
from simplerl.storage import atomic
from simplerl.storage.files import write_parquet
from simplerl.storage.records import EVAL_COLUMNS

pytestmark = pytest.mark.unit


# --- eval folders -----------------------------------------------------------------------------------------------------


def test_an_eval_folder_is_read_whole(tmp_path):
    folder = write_eval(tmp_path / "one", {"toy": ["cw", "ww"], "other": ["c"]}, suite="simplerl-v0", parts=3)
    data = read_evaluation(folder)
    assert (data.name, data.kind, data.finished, data.step) == ("one", "eval", True, None)
    assert data.environments == ({"simplerl": "0.1.0"},)
    assert list(data.files) == ["toy", "other"] and len(data.files["toy"]) == 3
    assert data.decoding["toy"] == {
        "template": "qwen-boxed", "engine": "embedded", "temperature": 0.0, "top_p": 1.0, "max_tokens": 3000
    }  # fmt: skip
    assert data.average == ("aime24", "math500", "amc23", "minerva_math", "olympiadbench")
    rows = data.responses("toy")
    assert [(row["problem_id"], row["sample_index"]) for row in rows] == [
        ("toy/0000", 0), ("toy/0000", 1), ("toy/0001", 0), ("toy/0001", 1)
    ]  # fmt: skip
    assert score(rows, operator.eq).accuracy.value == 0.25


def test_parts_have_their_own_settings_and_order(tmp_path):
    parts = [{"name": "b", "benchmark": "b", "n": 32, "temperature": 1.0}, {"name": "a", "temperature": 0.0}]
    folder = write_eval(tmp_path / "one", {"a": ["c"], "b": ["c"]}, parts=1)
    plan = folder / "eval.toml"
    tables = "".join(
        "[[parts]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in part.items()) for part in parts
    )
    plan.write_text('template = "abel"\naverage = ["a"]\n' + tables)
    data = read_evaluation(folder)
    assert list(data.files) == ["b", "a"]
    assert data.decoding["b"] == {"template": "abel", "temperature": 1.0}
    assert data.average == ("a",)


def test_an_evaluation_is_read_while_it_is_written(tmp_path):
    folder = write_eval(tmp_path / "one", {"toy": ["c", "w"]}, finished=False)
    done = folder / "responses" / "toy"
    (done / ".tmp-123-part-0001.parquet").write_bytes(b"half a file")
    journal = folder / "responses" / "next.jsonl"
    journal.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows_of(["c"], "next")) + b'{"problem_id": "nex')
    data = read_evaluation(folder)
    assert not data.finished
    assert list(data.files) == ["toy", "next"]
    assert len(data.responses("toy")) == 2 and len(data.responses("next")) == 1


def test_a_benchmark_that_was_finished_meanwhile_is_found(tmp_path):
    folder = write_eval(tmp_path / "one", {"toy": ["c"]}, finished=False)
    journal = folder / "responses" / "next.jsonl"
    journal.write_bytes(orjson.dumps(response(0, 0)) + b"\n")
    data = read_evaluation(folder)
    write_parquet(folder / "responses" / "next" / "all.parquet", rows_of(["c", "w", "w"]), EVAL_COLUMNS)
    journal.unlink()
    assert len(data.responses("next")) == 3


def test_a_part_that_is_gone_is_left_out(tmp_path):
    folder = write_eval(tmp_path / "one", {"toy": ["c", "w"]}, parts=2)
    data = read_evaluation(folder)
    data.files["toy"][0].unlink()
    assert len(data.responses("toy")) == 1


def test_recorded_responses_need_no_plan(tmp_path):
    write_parquet(tmp_path / "responses" / "mine" / "all.parquet", rows_of(["c"]), EVAL_COLUMNS)
    data = read_evaluation(tmp_path)
    assert (data.settings, data.environments, list(data.files)) == ({}, (), ["mine"])


def test_a_damaged_file_is_named(tmp_path):
    folder = write_eval(tmp_path / "one", {"toy": ["c"]})
    data = read_evaluation(folder)
    data.files["toy"][0].write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"part-0000\.parquet is damaged"):
        data.responses("toy")
    (folder / "eval.toml").write_text("model = ")
    with pytest.raises(ConfigError, match=r"eval\.toml is damaged"):
        read_evaluation(folder)


def test_folders_that_are_none_are_refused_with_what_to_give(tmp_path):
    with pytest.raises(DataError, match="neither an eval folder"):
        read_evaluation(tmp_path)
    (tmp_path / "eval.toml").write_text("")
    with pytest.raises(DataError, match="no responses yet"):
        read_evaluation(tmp_path)


def test_a_name_that_is_nothing_lists_near_ones(tmp_path):
    write_eval(tmp_path / "tiny-base", {"toy": ["c"]})
    with pytest.raises(DataError, match=r"is not a folder; did you mean .*/tiny-base\? Give"):
        read_evaluation(tmp_path / "tiny-bse")
    with pytest.raises(DataError, match=r"did you mean paper:simplerl-zero, "):
        read_evaluation("simplerl-zero")


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "seed-0", steps=10)


def test_the_last_evaluation_of_a_run(run):
    data = read_evaluation(run)
    assert (data.kind, data.step, data.name) == ("run", 10, "seed-0@10")
    assert list(data.files) == ["arithmetic-test", "arithmetic-test T=1"]
    assert data.decoding["arithmetic-test"]["temperature"] == 0.0
    assert data.decoding["arithmetic-test T=1"]["temperature"] == 1.0
    assert len(data.responses("arithmetic-test")) == 40
    assert score(data.responses("arithmetic-test"), operator.eq).problems == 40


def test_another_evaluation_of_a_run(run):
    first = read_evaluation(f"{run}@0")
    assert first.step == 0
    assert first.responses("arithmetic-test") != read_evaluation(run).responses("arithmetic-test")


def test_how_a_run_of_fine_tuning_answered(tmp_path):
    folder = write_sft_run(tmp_path / "warm-up", steps=5)
    text = '[data]\ntemplate = "chat"\n[eval]\ntemplate = "abel"\n[train]\nmax_response_tokens = 160\n'
    (folder / "recipe.toml").write_text('kind = "sft"\n' + text)
    known = {"template": "abel", "engine": "embedded", "temperature": 0.0, "top_p": 1.0, "max_tokens": 160}
    assert read_evaluation(folder).decoding == {"arithmetic-test": known}


def test_a_step_without_an_evaluation_is_refused_with_those_there_are(run):
    with pytest.raises(DataError, match="not evaluated at step 7; at 0, 5, 10 it was"):
        read_evaluation(f"{run}@7")


def test_a_run_that_has_evaluated_nothing_is_refused(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 0\n")
    with pytest.raises(DataError, match="no finished evaluation yet"):
        read_evaluation(tmp_path)
    atomic.append_line(tmp_path / "evals.jsonl", b'{"step": 0, "set": "a", "temperature": 0.0}')
    with pytest.raises(SimpleRLError, match="no responses of step 0"):
        read_evaluation(tmp_path)
