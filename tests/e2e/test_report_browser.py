"""The report as a browser shows it: nothing is asked of the network, nothing is said on the console, all is drawn."""

import os
import shutil

import pytest
from synthetic_runs import write_run

from simplerl.analysis.report import write_report
from simplerl.analysis.run_data import read_run

CHROMIUM = os.environ.get("SIMPLERL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
SECTIONS = ("summary", "dynamics", "diagnostics", "evaluations", "claims", "responses", "recipe", "environment")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two runs; what the second one's model wrote is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [read_run(write_run(folder / f"seed-{seed}", seed, steps=40, hostile=seed == 0)) for seed in (0, 1)]
    return write_report(runs, folder / "report.html")


@pytest.fixture(params=[("light", 1240), ("dark", 1240), ("light", 390), ("dark", 390)], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, report):
    scheme, width = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.noise, page.asked = [], []
    page.on("console", lambda message: page.noise.append(message.text))
    page.on("pageerror", lambda error: page.noise.append(str(error)))
    page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(report.as_uri())
    yield page
    page.close()


def test_the_report_is_drawn_in_silence(page, report):
    assert page.noise == []
    assert [url for url in page.asked if not url.startswith("data:")] == [report.as_uri()]
    for name in SECTIONS:
        box = page.locator(f"section#{name}").bounding_box()
        assert box["width"] > 300 and box["height"] > 40, name


def test_every_figure_has_a_size_and_fits(page):
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    sizes = page.evaluate(
        "[...document.images].map(image => [image.naturalWidth, image.clientWidth, image.clientHeight])"
    )
    assert len(sizes) == 2
    for natural, width, height in sizes:
        assert natural > 0 and width > 300 and height > 300
    # Tables scroll in their own boxes; the page itself never scrolls sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_the_figure_fits_the_window_and_the_colours(page):
    scheme = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'")
    shown = page.locator("#dynamics img").evaluate("image => atob(image.currentSrc.split(',')[1])")
    assert ("#151b24" in shown) is (scheme == "dark")
    tall = page.locator("#dynamics img").evaluate("image => image.naturalHeight > image.naturalWidth")
    assert tall is (page.viewport_size["width"] < 700)


def test_hostile_text_stays_text_and_styles_are_highlighted(page):
    assert page.locator("script").count() == 0
    assert page.locator("#responses img").count() == 0
    assert "<script>alert('x')</script>" in page.locator("#responses pre").first.inner_text()
    for kind in ("code", "reflection", "box"):
        assert page.locator(f"#responses pre mark.{kind}").count() > 0
