import pytest
from synthetic_evals import write_eval

from simplerl.formatting import markdown, table
from simplerl.report.compare_output import as_markdown, as_text, paper_differences, paper_table
from simplerl.report.comparison import compare, from_eval, from_published
from simplerl.report.eval_data import read_eval
from simplerl.report.published import published

BEFORE = {"toy": ["c"] * 10 + ["w"] * 50, "other": ["cw", "ww", "cc"]}
AFTER = {"toy": ["c"] * 40 + ["w"] * 20, "other": ["cc", "ww", "cc"]}


@pytest.fixture
def contenders(tmp_path):
    folders = {name: write_eval(tmp_path / name, verdicts) for name, verdicts in (("a", BEFORE), ("b|c", AFTER))}
    return [from_eval(read_eval(folder), name) for name, folder in folders.items()]


def test_the_paper_has_a_row_per_model(contenders):
    head, before, after = paper_table(compare(contenders))
    assert head == ("model", "toy\n(60)", "other\n(3)", "average")
    assert before[:2] == ("a", "16.7\n[9.3, 28.0]")
    assert after[:2] == ("b|c", "66.7\n[54.1, 77.3]")
    # 1 of 2, none and all of 3 problems: 50 %; the average counts both sets once.
    assert before[2].splitlines()[0] == "50.0" and before[2].endswith("]\navg@2")
    assert before[3].splitlines()[0] == "33.3" and after[3].splitlines()[0] == "66.7"


def test_differences_say_how_sure_they_are(contenders):
    head, row = paper_differences(compare(contenders))
    assert head == ("minus a\n(points)", "toy", "other", "average")
    # 30 problems gained, none lost: 2 / 2^30.
    assert row[:2] == ("b|c", "+50.0\n[+37.7, +62.3]\np = 2e-09")
    assert row[2].startswith("+16.7\n[") and row[2].endswith("\npaired, bootstrap")
    assert row[3].startswith("+33.3\n[") and row[3].endswith("\nmean of 2")


def test_what_a_model_has_not_is_a_dash(contenders):
    paper = from_published(published("simplerl-zero"), "paper")
    comparison = compare([contenders[0], paper])
    rows = paper_table(comparison)
    assert len(rows[0]) == 1 + len(comparison.benchmarks) + 1
    assert rows[1][3:-1] == ("-",) * (len(comparison.benchmarks) - 2) and rows[2][1:3] == ("-", "-")
    assert set(paper_differences(comparison)[1][1:]) == {"-"}


def test_there_is_no_average_of_one_benchmark(tmp_path):
    models = [from_eval(read_eval(write_eval(tmp_path / name, {"toy": "cw"})), name) for name in "ab"]
    assert paper_table(compare(models))[0] == ("model", "toy\n(2)")
    head, row = paper_differences(compare(models))
    # Two problems, no difference: Tango's bound is z^2 / (2 + z^2).
    assert (head, row) == (("minus a\n(points)", "toy"), ("b", "+0.0\n[-65.8, +65.8]\np = 1.000"))


def test_markdown_by_model_has_cells_of_one_line(contenders):
    blocks = as_markdown(compare(contenders), ["mind | this"], by_model=True).split("\n\n")
    assert blocks[0].splitlines()[0] == "| model | toy (60) | other (3) | average |"
    assert blocks[0].splitlines()[3].startswith("| b\\|c | 66.7 [54.1, 77.3] |")
    assert blocks[1].splitlines()[2].startswith("| b\\|c | +50.0 [+37.7, +62.3] p = 2e-09 |")
    assert blocks[2] == "- mind \\| this"
    alone = as_markdown(compare(contenders[:1]), [], by_model=True)
    assert alone.count("| model |") == 1 and "minus" not in alone
    assert "| toy (60) | 16.7 [9.3, 28.0] |" in as_markdown(compare(contenders), [])
    assert as_text(compare(contenders), ["x"]).endswith("\n\n- x")


def test_grids_are_aligned_text_or_markdown():
    grid = [("a", "b"), ("one\ntwo", "c|d")]
    assert table(grid, "  ") == "  a        b\n  one two  c|d"
    assert markdown(grid) == "| a | b |\n| --- | --- |\n| one two | c\\|d |"
    assert table([]) == ""
