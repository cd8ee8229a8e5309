"""The report as a browser shows it: nothing is asked of the network, nothing is said on the console, all is drawn."""

import re
import time

import pytest
from synthetic_responses import HOSTILE_TEXTS, response, write_eval, write_rollouts
from synthetic_runs import write_run, write_sft_run

from simplerl.report.comparison import compare, from_eval
from simplerl.report.eval_data import read_evaluation
from simplerl.report.examples import pieces
from simplerl.report.plain_text import visible
from simplerl.report.report import write_report
from simplerl.report.response_files import eval_responses
from simplerl.report.responses import LONGEST
from simplerl.report.run_data import EvalKey, read_run

pytestmark = pytest.mark.e2e

SECTIONS = (
    "summary", "dynamics", "benchmarks", "answers", "diagnostics", "cost", "evaluations", "claims", "responses",
    "browser", "verifier", "recipe", "environment",
)  # fmt: skip
FORMULAS = {
    r"The root is $\frac{-b \pm \sqrt{b^2-4ac}}{2a}$ or \(x_1\).": 2,
    r"So \[\begin{pmatrix}1&2\\3&4\end{pmatrix}\] and $$\boxed{7}$$": 2,
    r"\begin{align*} x &= 1 \\ y &= 2 \end{align*}": 1,
    "It costs $5 and then $6 more.": 0,
    r"Open $\frac{1}{2 and \(\left( x": 0,
    r"$\href{javascript:alert(1)}{x}$ and $\def\a{b}\a$ and $\ref{x}$": 0,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs; what the first one's model wrote is hostile, the second one solves more of the set `pair`."""
    folder = tmp_path_factory.mktemp("runs")
    made = [write_run(folder / f"seed-{seed}", seed, steps=40, hostile=seed == 0) for seed in (0, 1)]
    for run, path in enumerate(made):
        for step in (0, 40):
            write_eval(path, step, "formulas", 0.0, [response(f"f{i}", text=t) for i, t in enumerate(FORMULAS)])
            write_eval(path, step, "hostile", 0.0, [response(f"h{i}", text=t) for i, t in enumerate(HOSTILE_TEXTS)])
            solved = [f"p{i}" for i in range(6) if i < (2 + 3 * run if step else 1)]
            write_eval(path, step, "pair", 0.0, [attempt(f"p{i}", f"p{i}" in solved, run, step) for i in range(6)])
        for step in (1, 2):
            rows = [
                response(f"t{i}", sample_index=s, text=f"needle{step} sample {s}") for i in (1, 2) for s in range(4)
            ]
            write_rollouts(path, step, rows)
    return made


def attempt(problem, right, run, step):
    text = f"We add two and {'three' if right else 'four'} of run {run} at step {step}."
    finish = "length" if problem == "p5" else "stop"
    return response(problem, verdict="correct" if right else "wrong", text=text, finish_reason=finish)


@pytest.fixture(scope="module")
def report(folders):
    return write_report([read_run(folder) for folder in folders], folders[0].parent / "report.html")


@pytest.fixture(params=[("light", 1240), ("dark", 1240), ("light", 390), ("dark", 390)], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, open_page, report):
    scheme, width = request.param
    return open_page(report.as_uri(), width, scheme)


@pytest.fixture
def wide(open_page, report):
    page = open_page(report.as_uri())
    yield page
    assert page.noise == [] and page.asked == [report.as_uri()]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_report_is_drawn_in_silence(page, report):
    assert page.noise == []
    assert page.asked == [report.as_uri()]
    for name in SECTIONS:
        box = page.locator(f"section#{name}").bounding_box()
        assert box["width"] > 300 and box["height"] > 40, name


def test_every_figure_has_a_size_and_fits(page):
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    sizes = page.evaluate(
        "[...document.images].map(image => [image.naturalWidth, image.clientWidth, image.clientHeight])"
    )
    assert len(sizes) > 20
    for natural, width, height in sizes:
        assert natural > 0 and width > 280 and height > 170
    # Tables scroll in their own boxes; the page itself never scrolls sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_figure_has_the_colours_of_the_page(page):
    scheme = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'")
    shown = page.locator("#dynamics img").first.evaluate("image => atob(image.currentSrc.split(',')[1])")
    assert ("#151b24" in shown) is (scheme == "dark")


def test_without_scripts_all_but_the_browser_is_there(open_page, report):
    page = open_page(report.as_uri(), scripts=False)
    assert page.locator("#dynamics img").first.is_visible()
    assert "<script>alert('x')</script>" in page.locator("#responses pre").first.inner_text()
    assert page.locator("#browser noscript").count() == 1 and page.locator("#desk").is_hidden()


# --- models and runs of different kinds -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def publication(tmp_path_factory):
    """Zero, fine-tuning, and reinforcement learning after it, with their models side by side."""
    folder = tmp_path_factory.mktemp("publication")
    zero, sft = write_run(folder / "zero", steps=20), write_sft_run(folder / "warm-up", steps=20)
    after = write_run(folder / "after-warm-up", seed=1, steps=20, model="runs/warm-up/export")
    labels = {f"{zero}@0": "base", str(zero): HOSTILE_TEXTS[1], str(sft): "warm-up", str(after): "long " * 100}
    models = compare([from_eval(read_evaluation(name), label) for name, label in labels.items()])
    return write_report([read_run(path) for path in (zero, after, sft)], folder / "report.html", models)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1240), ("dark", 390)])
def test_models_and_runs_of_two_kinds_are_drawn_in_silence(open_page, publication, scheme, width):
    page = open_page(publication.as_uri(), width, scheme)
    assert page.noise == [] and page.asked == [publication.as_uri()] and page.evaluate("window.hacked") is None
    sections = page.locator("main > section").evaluate_all("all => all.map(section => section.id)")
    assert sections[:3] == ["models", "summary", "dynamics"]
    titles = page.locator("#dynamics .panels img").evaluate_all("all => all.map(image => image.alt.split(' (')[0])")
    assert titles == ["Accuracy", "Loss", "Reward", "Response length", "Style"]
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_tables_of_models_hold_what_was_measured(open_page, publication):
    page = open_page(publication.as_uri())
    tables = page.locator("#models table")
    assert tables.count() == 2
    names = tables.first.locator("tbody th").all_inner_texts()
    assert names[0] == "base" and names[1] == HOSTILE_TEXTS[1] and "characters left out" in names[3]
    # Fine-tuning was not evaluated at temperature 1.
    cells = tables.first.locator("tbody td").all_inner_texts()
    assert [cell == "-" for cell in cells].count(True) == 1
    for cell in (cell for cell in cells if cell != "-"):
        value, low, high = map(float, re.findall(r"[\d.]+", cell)[:3])
        assert low <= value <= high
    assert tables.nth(1).locator("tbody tr").count() == 3


# --- the browser of responses -----------------------------------------------------------------------------------------


def only(page, source, kind="all", word=""):
    """Sets the filters; gives the names of the problems that are left."""
    page.select_option("#source", source)
    page.select_option("#kind", kind)
    page.fill("#search", word)
    page.wait_for_timeout(250)
    return page.locator("#problems .name").all_inner_texts()


def choose(page, name):
    page.locator("#problems .entry").filter(has=page.get_by_text(name, exact=True)).click()


def texts(page):
    return page.locator("#panes pre").all_inner_texts()


def test_a_problem_is_chosen_and_its_first_and_last_response_stand_side_by_side(wide):
    assert only(wide, "pair") == [f"p{i}" for i in range(6)]
    choose(wide, "p1")
    assert texts(wide) == ["We add two and four of run 0 at step 0.", "We add two and three of run 0 at step 40."]
    assert wide.locator("#panes .verdict").all_inner_texts() == ["wrong", "correct"]
    assert wide.locator("#facts").inner_text() == "pair · p1 · level 3 · algebra"
    assert "step 40 · finished · 7 tokens · reward 1 · box, value" in wide.locator("#panes footer").nth(1).inner_text()
    assert wide.locator("#panes [data-part=answer]").all_inner_texts() == ["1", "1"]


def test_two_runs_stand_side_by_side(wide):
    only(wide, "pair", "differ")
    wide.select_option("#pairing", "runs")
    choose(wide, "p3")
    assert texts(wide) == ["We add two and four of run 0 at step 40.", "We add two and three of run 1 at step 40."]
    assert wide.locator("#problems .name").all_inner_texts() == ["p2", "p3", "p4"]
    choose(wide, "p4")
    assert [text.rpartition("of ")[2] for text in texts(wide)] == ["run 0 at step 40.", "run 1 at step 40."]


def test_differences_are_marked_in_both_panes(wide):
    only(wide, "pair")
    choose(wide, "p1")
    wide.check("#compare")
    assert wide.locator("#panes mark.gone").all_inner_texts() == ["four", "0"]
    assert wide.locator("#panes mark.new").all_inner_texts() == ["three", "40"]
    choose(wide, "p0")
    wide.uncheck("#compare")
    assert wide.locator("#panes mark.gone, #panes mark.new").count() == 0


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gained", ["p1", "p2", "p3", "p4"]),
        ("lost", []),
        ("kept", ["p0"]),
        ("never", ["p5"]),
        ("truncated", ["p5"]),
        ("no_answer", []),
    ],
)
def test_filters_leave_the_problems_they_name(wide, kind, names):
    assert only(wide, "pair", kind) == names
    assert wide.locator("#found").inner_text().startswith(f"{len(names)} of ")


def test_a_search_finds_responses_and_shows_where(wide):
    assert only(wide, "", word="NEEDLE2") == ["t1", "t2"]
    assert texts(wide)[1] == "needle2 sample 0"
    assert wide.locator("#panes mark.hit").first.inner_text() == "needle2"
    # Found in an evaluation of run 1 only: the right pane goes there.
    assert only(wide, "pair", word="of run 1 at step 0") == [f"p{i}" for i in range(6)]
    assert texts(wide)[1] == "We add two and three of run 1 at step 0."
    assert only(wide, "", word="nowhere at all") == []
    assert not wide.locator("#problem").is_visible()


def test_keys_move_through_problems_and_steps(wide):
    only(wide, "pair")
    choose(wide, "p1")
    wide.keyboard.press("ArrowDown")
    assert wide.locator("#facts").inner_text().startswith("pair · p2")
    wide.locator("#panes .strip").nth(1).locator("[aria-current]").focus()
    wide.keyboard.press("ArrowLeft")
    assert texts(wide)[1] == "We add two and four of run 0 at step 0."
    # The pane stays at its step when another problem is chosen.
    choose(wide, "p1")
    assert texts(wide)[1].endswith("step 0.")


def test_samples_of_a_training_step_are_cells_of_one_strip(wide):
    only(wide, "training")
    choose(wide, "t1")
    cells = wide.locator("#panes .strip").first.locator("button")
    assert cells.count() == 8
    cells.nth(5).click()
    assert texts(wide)[0] == "needle2 sample 1"


def test_styles_are_marked_by_the_rules_that_count_them(wide, folders):
    rows = eval_responses(read_run(folders[1]), 20, EvalKey("arithmetic-test", 0.0), ("problem_id", "text"))
    only(wide, "arithmetic-test")
    wide.uncheck("#formulas")
    wide.select_option("#panes select >> nth=0", label="seed-1, greedy")
    step = wide.locator("#panes .strip").first.get_by_label("step 20")
    step.click()
    for row in rows[:12]:
        choose(wide, row["problem_id"])
        marks = wide.locator("#panes pre").first.evaluate("p => [...p.children].map(m => [m.className, m.textContent])")
        assert marks == [[piece.kind, piece.text] for piece in pieces(row["text"]) if piece.kind]


def test_formulas_are_set_where_they_can_be(wide):
    only(wide, "formulas")
    for index, (text, count) in enumerate(FORMULAS.items()):
        wide.check("#formulas")
        choose(wide, f"f{index}")
        assert wide.locator("#panes pre").first.locator("math").count() == count, text
        wide.uncheck("#formulas")
        assert texts(wide)[0] == text
    assert wide.locator("#panes a").count() == 0


@pytest.mark.parametrize("formulas", [True, False])
def test_hostile_responses_neither_run_nor_break(wide, formulas):
    only(wide, "hostile")
    wide.set_checked("#formulas", formulas)
    wide.set_checked("#compare", not formulas)
    for index, text in enumerate(HOSTILE_TEXTS):
        begun = time.monotonic()
        choose(wide, f"h{index}")
        shown = wide.locator("#panes pre").first.evaluate("pre => pre.textContent")
        assert shown == visible(text, LONGEST)
        assert time.monotonic() - begun < 5
    assert wide.evaluate("window.hacked") is None
    assert wide.locator("script").count() == 3
    assert wide.locator("#browser img, #browser svg, #browser a, #browser iframe").count() == 0


def test_hostile_text_of_the_static_part_stays_text(wide):
    assert wide.locator("#responses img").count() == 0
    assert "<script>alert('x')</script>" in wide.locator("#responses pre").first.inner_text()
    for kind in ("code", "reflection", "box"):
        assert wide.locator(f"#responses pre mark.{kind}").count() > 0
