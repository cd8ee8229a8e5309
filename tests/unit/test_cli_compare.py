import csv
import io
import json

import pytest
from synthetic_evals import write_eval
from synthetic_runs import write_run
from typer.testing import CliRunner

from simplerl.cli.compare import labels
from simplerl.cli.main import app, run

pytestmark = pytest.mark.unit


def invoke(*arguments):
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def pair(tmp_path):
    before = write_eval(tmp_path / "before", {"toy": ["c"] * 10 + ["w"] * 50, "other": ["cw", "ww", "cc"]})
    after = write_eval(tmp_path / "after", {"toy": ["c"] * 40 + ["w"] * 20, "other": ["cc", "ww", "cc"]})
    return before, after


def test_the_table(pair):
    lines = invoke(*pair).output.splitlines()
    assert lines[0].split("  ")[0] == "accuracy, %, with 95 % interval"
    assert lines[1].split() == ["toy", "(60)", "16.7", "[9.3,", "28.0]", "66.7", "[54.1,", "77.3]"]
    assert lines[2].startswith("other (3)") and lines[2].endswith("] avg@2")
    assert lines[3].startswith("average")
    block = lines[lines.index("") + 1 :]
    assert block[0].startswith("after - before")
    assert "+50.0 [+37.7, +62.3]" in block[1] and "paired, 60 problems" in block[1] and "2e-09" in block[1]
    assert "paired, bootstrap, 3 problems" in block[2]


def test_markdown_is_a_table_of_equal_rows(pair):
    lines = invoke(*pair, "--format", "markdown").output.splitlines()
    assert lines[0] == "| accuracy, %, with 95 % interval | before | after |"
    assert lines[1] == "| --- | --- | --- |"
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count(" | ") for line in tables[:5]} == {2} and {line.count(" | ") for line in tables[5:]} == {4}
    assert any(line.startswith("- other: 3 problems") for line in lines)


def test_paper_is_a_row_per_model_under_the_names_given(pair):
    before, after = pair
    lines = invoke(f"the base={before}", f"trained={after}", "--format", "paper").output.splitlines()
    firsts = [line.split(" | ")[0] for line in lines if line.startswith("|")]
    assert firsts[:4] == ["| model", "| ---", "| the base", "| trained"]


def test_seeds_are_pooled_problem_by_problem(tmp_path):
    """Two seeds of the trained model: problem 0 right in both, 1 in one, 2 in none; the base only problem 2."""
    base = write_eval(tmp_path / "base", {"toy": ["w", "w", "c"]})
    one = write_eval(tmp_path / "one", {"toy": ["c", "c", "w"]})
    two = write_eval(tmp_path / "two", {"toy": ["c", "w", "w"]})
    things = json.loads(invoke(base, f"both={one}+{two}", "--format", "json").output)["things"]
    toy = things[1]["benchmarks"]["toy"]
    assert things[1]["name"] == "both"
    assert (toy["problems"], toy["samples"], toy["accuracy"]) == (3, 2, 0.5)
    assert toy["difference"]["value"] == pytest.approx((1 + 0.5 - 1) / 3)
    assert toy["difference"]["method"] == "paired, bootstrap"


def test_a_folder_with_a_plus_or_an_equals_sign_in_its_name_is_one_thing(tmp_path):
    first = write_eval(tmp_path / "a+b", {"toy": ["w", "w"]})
    second = write_eval(tmp_path / "lr=1", {"toy": ["c", "w"]})
    lines = invoke(first, second).output.splitlines()
    assert lines[0].split()[-2:] == ["a+b", "lr=1"]


def test_json_holds_shares_and_differences(pair):
    found = json.loads(invoke(*pair, "--format", "json").stdout)
    before, after = found["things"]
    assert (before["name"], after["name"]) == ("before", "after")
    assert before["benchmarks"]["toy"]["accuracy"] == pytest.approx(1 / 6)
    gap = after["benchmarks"]["toy"]["difference"]
    assert gap["value"] == 0.5 and gap["p"] == 2 / 2**30 and gap["problems"] == 60
    assert "difference" not in before["benchmarks"]["toy"]
    assert found["average_over"] == ["toy", "other"]


def test_csv_has_a_row_per_thing_and_benchmark(pair):
    result = invoke(*pair, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["thing"], row["benchmark"]) for row in rows] == [
        (thing, name) for thing in ("before", "after") for name in ("toy", "other", "average")
    ]
    assert rows[0]["difference"] == "" and float(rows[3]["difference"]) == 0.5
    assert rows[3]["paired_problems"] == "60"
    assert "other: 3 problems" in result.stderr


def test_the_published_tables(pair):
    output = invoke("paper:qwen2.5-math-7b-base", "paper:simplerl-zero", "paper:simplerl-zero-2").output
    assert "33.3 [19.2, 51.2]" in output and "36.7 [" in output
    assert "unpaired" in output and "aime24: 30 problems" in output
    assert "48.8 [" in output and "49.7 [" in output


def test_a_run_against_its_beginning(tmp_path):
    folder = write_run(tmp_path / "seed-0", steps=10)
    output = invoke(f"{folder}@0", folder).output
    assert "seed-0 - seed-0@0" in output
    assert "arithmetic-test (40)" in output and "arithmetic-test T=1 (40)" in output


def test_things_with_nothing_in_common_say_so(pair):
    assert "nothing in common" in invoke(pair[0], "paper:simplerl").output


def test_labels_are_the_least_that_tells_apart():
    assert labels(["evals/a/step-000020", "evals/b/step-000020"]) == ["a/step-000020", "b/step-000020"]
    assert labels(["evals/a/", "x/b", "paper:simplerl"]) == ["a", "b", "paper:simplerl"]
    assert labels(["x/a", "x/a"]) == ["a", "a"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paper:simplerl"], "two things to compare"),
        (["paper:simplerl", "paper:simplrl"], "no published row 'simplrl'; did you mean simplerl"),
        (["paper:simplerl", "nowhere/at-all"], "nowhere/at-all is not a folder."),
    ],
)
def test_mistakes_are_said_with_what_to_do(arguments, words, capsys):
    assert run(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err
