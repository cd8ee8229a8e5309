import re
import shutil
from html.parser import HTMLParser

import pytest
import typer
from synthetic_evals import write_eval
from synthetic_responses import response, write_rollouts
from synthetic_runs import HOSTILE, write_run, write_sft_run
from typer.testing import CliRunner

from simplerl.cli.report import report as report_command
from simplerl.errors import ConfigError
from simplerl.report import examples, report
from simplerl.report.comparison import compare, from_eval
from simplerl.report.eval_data import read_eval
from simplerl.report.run_data import read_run
from simplerl.storage.records import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder / f"seed-{seed}", seed, steps=40, hostile=seed == 1)) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Figures have their own tests, and a browser sees the real ones; here an empty one stands for each."""
    for name in ("render", "render_panel", "render_legend"):
        monkeypatch.setattr(report, name, lambda *_: b"<svg/>")


@pytest.fixture
def pages(runs, drawn):
    return {"plain": report.render_report(runs[:1]), "hostile": report.render_report(runs[1:])}


class Outline(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_page_tells_what_was_lost(tmp_path):
    folder = RunFolder(write_run(tmp_path / "run", 0, steps=10))
    folder.append_event(7, "engine lost", "engine 1 of 2 <b>is lost</b>")
    folder.truncate_after(3)
    page = report.render_report([read_run(folder.path)])
    assert '<td>7</td><td>engine lost</td><td class="wide">engine 1 of 2 &lt;b&gt;is lost&lt;/b&gt;</td>' in page
    tags = Outline(page).tags
    assert ("a", {"href": "#events"}) in tags and ("section", {"id": "events"}) in tags


def test_a_page_has_its_sections_and_pictures_with_words(pages):
    tags = Outline(pages["plain"]).tags
    ids = {attrs.get("id") for tag, attrs in tags if tag == "section"}
    assert ids == {
        "summary", "dynamics", "benchmarks", "answers", "diagnostics", "cost", "evaluations", "claims", "responses",
        "browser", "verifier", "recipe", "environment",
    }  # fmt: skip
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) > 20 and all(len(attrs["alt"]) > 30 for attrs in images)
    links = {attrs["href"].removeprefix("#") for tag, attrs in tags if tag == "a"}
    assert links == ids


def test_a_page_loads_nothing_and_runs_only_its_own_scripts(pages):
    for page in pages.values():
        tags = Outline(page).tags
        assert not {"iframe", "object", "base", "form"} & {tag for tag, _ in tags}
        scripts = [attrs for tag, attrs in tags if tag == "script"]
        assert [attrs.get("type") for attrs in scripts] == ["application/octet-stream", None, None]
        for _, attrs in tags:
            assert not [name for name in attrs if name.startswith("on")]
            for source in (attrs.get("src"), attrs.get("srcset")):
                assert source is None or source.startswith("data:image/svg+xml;base64,")
        assert set(re.findall(r"https?://[^\s\"'<>]*", page)) == {"http://www.w3.org/1998/Math/MathML"}


def test_text_of_a_model_is_text(pages):
    assert "&lt;script&gt;alert(" in pages["hostile"]
    assert "{{ 7*7 }}" in pages["hostile"]
    assert "&amp;amp;" in pages["hostile"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", pages["hostile"].split("<script")[0])


def test_pieces_add_up_to_the_text():
    text = "We write:\n```python\nprint(1)\n``` Wait, no.\tdef f(x) gives \\boxed{12}"
    found = examples.pieces(text)
    assert "".join(piece.text for piece in found) == text
    assert [(piece.kind, piece.text) for piece in found if piece.kind] == [
        ("code", "```python\nprint(1)\n```"), ("reflection", "Wait"), ("code", "def f("), ("box", "\\boxed{12}"),
    ]  # fmt: skip


def test_pieces_make_controls_visible_and_cut_what_is_long():
    shown = "".join(piece.text for piece in examples.pieces(HOSTILE))
    assert "\u2400" in shown and "\x00" not in shown and "\u202e" not in shown
    assert "x\n[1,000 characters left out]\nx" in "".join(piece.text for piece in examples.pieces("x" * 5000))
    assert examples.pieces("") == []


def pair(before, after, text=""):
    return examples.Pair({"verdict": before, "text": text}, {"verdict": after, "text": ""})


def test_one_pair_of_each_kind_is_shown_failures_too():
    gain, code = pair("wrong", "correct"), pair("no_answer", "correct", "print(")
    loss, never, both = pair("correct", "wrong"), pair("error", "wrong"), pair("correct", "correct")
    pairs = [both, gain, pair("wrong", "correct"), never, code, loss]
    assert [example.pair for example in examples.choose(pairs)] == [code, gain, loss, never]
    assert examples.transitions(pairs) == {
        (True, True): 1, (False, True): 3, (False, False): 1, (True, False): 1
    }  # fmt: skip


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", steps=0)
    run = read_run(folder)
    assert run.metrics == ()
    page = report.render_report([run])
    assert '<section id="responses"' not in page and '<section id="dynamics"' in page


def test_a_run_without_evaluations_has_a_page_with_its_training_responses(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    shutil.rmtree(folder / "evals")
    (folder / "evals.jsonl").write_text("")
    write_rollouts(folder, 2, [response("p")])
    page = report.render_report([read_run(folder)])
    assert "Measured on training responses." in page and "1 of the 1 responses are in this page" in page
    assert '<section id="evaluations"' not in page


def test_a_page_without_responses_runs_nothing(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    for path in (folder / "evals").iterdir():
        path.unlink()
    page = report.render_report([read_run(folder)])
    assert "<script" not in page and "script-src &#39;none&#39;" in page
    assert '<section id="browser"' not in page and '<section id="verifier"' not in page


def test_runs_of_different_recipes_are_told_apart(runs, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "other", seed=3, steps=10)
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"simplerl"', '"accuracy"'))
    both = [runs[0], read_run(folder)]
    assert report.recipe_differences(both)["reward"] == ["simplerl", "accuracy"]
    page = report.render_report(both)
    assert "<h3>seed-0</h3>" in page and "<h3>other</h3>" in page
    assert 'class="legend"' in page
    page = report.render_report([*runs, both[1]])
    assert "<h3>seed-0 and 1 more</h3>" in page and "in 2 runs" in page


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return write_sft_run(tmp_path_factory.mktemp("runs") / "warm-up", steps=20)


def test_fine_tuning_has_a_page_without_claims(sft):
    page = report.render_report([read_run(sft)])
    ids = {attrs.get("id") for tag, attrs in Outline(page).tags if tag == "section"}
    assert {"dynamics", "diagnostics", "cost", "evaluations", "browser"} <= ids and "claims" not in ids
    assert "Validation loss" in page and "knows only the box" not in page and "mean training reward" not in page


@pytest.mark.parametrize("left", ["metrics.jsonl", "validation.jsonl"])
def test_fine_tuning_that_answered_nothing_has_a_page(sft, tmp_path, left):
    folder = shutil.copytree(sft, tmp_path / "warm-up")
    shutil.rmtree(folder / "evals")
    for name in {"metrics.jsonl", "validation.jsonl", "evals.jsonl"} - {left}:
        (folder / name).unlink()
    page = report.render_report([read_run(folder)])
    assert '<section id="dynamics"' in page and "No held-out problem was answered" in page
    assert '<section id="evaluations"' not in page and '<section id="browser"' not in page


def test_runs_of_both_kinds_are_on_one_page_and_claims_are_of_one(runs, sft, tmp_path):
    after = read_run(write_run(tmp_path / "after", seed=4, steps=10, model="runs/warm-up/export"))
    page = report.render_report([read_run(sft), after, runs[0]])
    assert "checked on each such run" in page
    claims = page.partition('<section id="claims">')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', claims) == ["Claim", "seed-0"]
    lengths = page.partition("<h3>Mean response length</h3>")[2].partition("</table>")[0]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", lengths) == [
        ("warm-up", "arithmetic-test", "greedy"),
        ("after", "arithmetic-test", "T = 1"),
        ("seed-0", "arithmetic-test", "T = 1"),
    ]


def test_before_and_after_is_of_the_first_run_that_has_both(runs, sft, tmp_path):
    folder = shutil.copytree(sft, tmp_path / "silent")
    shutil.rmtree(folder / "evals")
    assert "Greedy responses of seed-0 to 40 problems" in report.render_report([read_run(folder), runs[0]])


# --- side by side -----------------------------------------------------------------------------------------------------


@pytest.fixture
def comparison(tmp_path):
    models = {"base <b>": "ccww", "zero \u202e": "cccw", "warm-up": "wccc"}
    folders = [write_eval(tmp_path / str(i), {"toy": verdicts}) for i, verdicts in enumerate(models.values())]
    return compare([from_eval(read_eval(folder), label) for folder, label in zip(folders, models, strict=True)])


def test_models_stand_side_by_side_at_the_top_of_the_page(runs, comparison, tmp_path):
    page = report.write_report(runs[:1], tmp_path / "page.html", comparison).read_text()
    ids = [attrs.get("id") for tag, attrs in Outline(page).tags if tag == "section"]
    assert ids[:2] == ["models", "summary"] and '<a href="#models">' in page
    section = page.partition('<section id="models">')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', section) == [
        "base &lt;b&gt;", "zero \ufffd", "warm-up", "zero \ufffd", "warm-up"
    ]  # fmt: skip
    cells = [re.findall("<span>(.*?)</span>", cell) for cell in re.findall('<td class="number">(.*?)</td>', section)]
    assert [cell[0] for cell in cells] == ["50.0", "75.0", "75.0", "+25.0", "+25.0"]
    assert cells[0][1:] == ["[15.0, 85.0]"] and cells[3][2] == "p = 1.000"
    assert "Differences to <bdi>base &lt;b&gt;</bdi>" in section and "<li>toy: 4 problems" in section
    assert '<section id="models"' not in report.render_report(runs[:1])


def test_a_page_of_models_alone_runs_nothing(comparison, tmp_path):
    page = report.write_report([], tmp_path / "page.html", comparison).read_text()
    assert "<title>Models side by side" in page and "script-src &#39;none&#39;" in page
    assert [attrs["id"] for tag, attrs in Outline(page).tags if tag == "section"] == ["models"]


def test_a_single_model_has_no_differences(comparison):
    found = report.side_by_side(compare(comparison.contenders[:1]))
    assert (len(found.table), len(found.differences)) == (2, 1)
    assert "Differences to" not in report.render_report([], comparison=compare(comparison.contenders[:1]))


def test_flatten_writes_dotted_keys_and_leaves_out_what_is_empty():
    table = {"a": 1, "b": {"c": [1, 2], "d": {"e": False}}, "f": None, "g": [], "h": {}}
    assert report.flatten(table) == {"a": 1, "b.c": "1 2", "b.d.e": False}


def invoke(*arguments):
    app = typer.Typer()
    app.command()(report_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_a_page_and_pictures(runs, tmp_path):
    result = invoke(runs[0].path, "--out", tmp_path / "page.html", "--png", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert "Greedy accuracy on 500 held-out problems" in result.output
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    names = [
        f"{name}{theme}.{kind}"
        for name in ("answers", "benchmarks", "cost", "diagnostics", "dynamics")
        for theme in ("", "-dark")
        for kind in ("png", "svg")
    ]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "page.html"]


def test_the_command_puts_models_side_by_side(runs, tmp_path):
    evals = [write_eval(tmp_path / name, {"toy": verdicts}) for name, verdicts in (("a", "cw"), ("b", "cc"))]
    named = [part for folder in evals for part in ("--compare", folder)]
    result = invoke(runs[0].path, "--out", tmp_path / "page.html", *named)
    assert result.exit_code == 0, result.output
    assert "Differences to <bdi>a</bdi>" in (tmp_path / "page.html").read_text()
    refused = invoke(runs[0].path, "--out", tmp_path / "other.html", "--compare", evals[0])
    assert isinstance(refused.exception, ConfigError) and not (tmp_path / "other.html").exists()


def test_the_page_lies_in_the_run_by_default(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    assert invoke(folder).exit_code == 0
    assert (folder / "report.html").exists()
