import re
import shutil
from html.parser import HTMLParser

import pytest
import typer
from synthetic_responses import response, write_rollouts
from synthetic_runs import HOSTILE, write_run
from typer.testing import CliRunner

from simplerl.analysis import examples, report
from simplerl.analysis.run_data import read_run
from simplerl.cli.report import report as report_command


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


def test_the_page_lies_in_the_run_by_default(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    assert invoke(folder).exit_code == 0
    assert (folder / "report.html").exists()
