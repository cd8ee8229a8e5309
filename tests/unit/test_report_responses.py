import base64
import gzip
import json
import random
from collections import Counter

import pytest
from synthetic_responses import HOSTILE_TEXTS, response, write_eval, write_rollouts
from synthetic_runs import write_run

from simplerl.report import responses
from simplerl.report.examples import MARKS
from simplerl.report.payload import pack, table
from simplerl.report.plain_text import visible
from simplerl.report.response_files import ResponseFile, eval_files, eval_key, eval_responses, spread_out
from simplerl.report.responses import Response, choose, eval_problems, select
from simplerl.report.run_data import EvalKey, read_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", steps=10)


def file(step):
    return ResponseFile(None, step, (0, 0))


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_thinned_by_powers_of_two_so_that_a_growing_run_keeps_its_choice():
    assert [f.step for f in spread_out([file(i) for i in range(1, 10)], 4)] == [2, 4, 6, 8]
    assert [f.step for f in spread_out([file(i) for i in range(1, 10)], 9)] == list(range(1, 10))
    short = {f.step for f in spread_out([file(i) for i in range(1, 101)], 32)}
    assert short == {4 * i for i in range(1, 26)}
    assert {f.step for f in spread_out([file(i) for i in range(1, 129)], 32)} >= short


def test_responses_are_those_of_the_step_set_and_temperature(folder):
    run = read_run(folder)
    rows = eval_responses(run, 10, EvalKey("arithmetic-test", 0.0), ("problem_id", "text"))
    assert [row["problem_id"] for row in rows[:2]] == ["arithmetic/0", "arithmetic/1"]
    assert len(rows) == 40
    assert rows != eval_responses(run, 10, EvalKey("arithmetic-test", 1.0), ("problem_id", "text"))
    assert eval_responses(run, 7, EvalKey("arithmetic-test", 0.0), ("text",)) == []


def test_a_column_that_a_file_lacks_is_null(folder):
    assert eval_files(read_run(folder))[0].read(("subject", "nothing"))["subject"].null_count == 40


def test_an_empty_file_is_of_nothing(folder):
    path = write_eval(folder, 10, "empty", 0.0, [response("p")])
    import pyarrow.parquet as parquet

    parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    empty = [each for each in eval_files(read_run(folder)) if each.path == path]
    assert eval_key(empty[0]) is None
    assert "empty" not in eval_problems([read_run(folder)])


# --- which ones -------------------------------------------------------------------------------------------------------


def test_problems_are_taken_in_turn_from_each_kind():
    first = {f"kept{i}": "correct" for i in range(50)} | {"lost": "correct", "gained": "wrong"}
    last = dict.fromkeys(first, "correct") | {"lost": "wrong", "cut": "wrong, truncated", "none": "no_answer"}
    chosen = choose(first, last, 8)
    assert len(chosen) == 8
    assert {"lost", "gained", "cut", "none"} < set(chosen)
    assert choose(first, last, 8) == chosen
    assert len(choose(first, last, 1000)) == 54


def test_every_response_of_a_chosen_problem_is_shown(folder):
    for step in (0, 5, 10):
        rows = [response("p", sample_index=i, text=f"{step} {i}") for i in range(12)]
        write_eval(folder, step, "aime", 1.0, rows)
    shown = [each for each in select([read_run(folder)]) if each.source == "aime"]
    assert {(each.step, each.row["sample_index"]) for each in shown} == {(s, i) for s in (0, 5, 10) for i in range(8)}


def test_two_runs_show_the_same_problems(tmp_path):
    runs = [read_run(write_run(tmp_path / f"seed-{seed}", seed, steps=10)) for seed in (0, 1)]
    shown = select(runs)
    problems = [{each.row["problem_id"] for each in shown if each.run == run} for run in (0, 1)]
    assert problems[0] == problems[1]


def test_training_problems_are_drawn_by_lot_and_stay_drawn(folder):
    for step in range(1, 5):
        rows = [response(f"p{problem}", sample_index=i) for problem in range(20) for i in range(4)]
        write_rollouts(folder, step, rows)
    before = [each for each in select([read_run(folder)]) if each.source == "training"]
    assert Counter(each.step for each in before) == dict.fromkeys(range(1, 5), 8)
    write_rollouts(folder, 5, [response(f"q{problem}") for problem in range(20)])
    after = [each for each in select([read_run(folder)]) if each.source == "training"]
    assert [each for each in after if each.step < 5] == sorted(before, key=after.index)


def test_what_is_too_much_is_left_out_evenly(folder, monkeypatch):
    everything = [each for each in select([read_run(folder)]) if each.source == "arithmetic-test"]
    monkeypatch.setattr(responses, "EVAL_BYTES", sum(len(each.row["text"]) for each in everything) // 2)
    kept = select([read_run(folder)])
    assert 0.3 * len(everything) < len(kept) < 0.6 * len(everything)
    # Problems are whole or not there: six responses each, at three steps and two temperatures.
    assert set(Counter(each.row["problem_id"] for each in kept).values()) == {6}


# --- text -------------------------------------------------------------------------------------------------------------


def test_of_a_long_text_the_beginning_and_the_end_are_left():
    shown = visible("a" * 8000 + "b" * 8000, 900)
    assert shown == "a" * 600 + "\n[15,100 characters left out]\n" + "b" * 300
    assert visible("short", 900) == "short"


def test_nothing_invisible_is_left():
    assert visible("\x00\x1b\x7f\r\n\t\x85\u2028\u202e\u2066x", 99) == "\u2400\u241b\u2421\n\t\ufffd\ufffd\ufffd\ufffdx"


# --- the block --------------------------------------------------------------------------------------------------------


def test_a_block_holds_every_response_once(folder):
    shown = select([read_run(folder)])
    block = pack(shown, ["run"])
    assert block == pack(shown, ["run"])
    data = json.loads(gzip.decompress(base64.b64decode(block)))
    columns = data["rows"]
    assert {len(column) for column in columns.values()} == {len(shown)}
    found = {
        (data["problems"][p]["id"], data["samplings"][s], step, text)
        for p, s, step, text in zip(*(columns[k] for k in ("problem", "sampling", "step", "text")), strict=True)
    }
    assert found == {(each.row["problem_id"], each.sampling, each.step, each.row["text"]) for each in shown}


def test_training_stands_last_and_problems_of_one_name_in_two_sets_are_two():
    shown = [
        Response(0, source, source, 1, response("p", text=source)) for source in ("training", "zebra", "aime", "zebra")
    ]
    data = table(shown, ["run"])
    assert [problem["source"] for problem in data["problems"]] == ["aime", "zebra", "training"]
    assert data["rows"]["problem"] == [0, 1, 1, 2]


def test_hostile_text_leaves_only_base64(folder):
    write_eval(folder, 10, "hostile", 0.0, [response(f"p{i}", text=text) for i, text in enumerate(HOSTILE_TEXTS)])
    block = pack(select([read_run(folder)]), ["</script>"])
    assert set(block) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def test_rules_are_ones_that_a_browser_reads_alike():
    marks = table([], [])["marks"]
    assert marks.keys() == MARKS.keys()
    assert not [rule for rule in marks.values() if r"\Z" in rule or "(?P" in rule or "(?i" in rule]


def test_even_what_does_not_compress_stays_small(folder, monkeypatch):
    monkeypatch.setattr(responses, "EVAL_BYTES", 100_000)
    rng = random.Random(0)
    rows = [response(f"p{i}", text="".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(5000))) for i in range(20)]
    write_eval(folder, 10, "random", 0.0, rows)
    assert len(pack(select([read_run(folder)]), ["run"])) < 100_000 * 4 / 3 + 10_000
