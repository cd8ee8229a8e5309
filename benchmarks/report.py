"""The report of a large run: its size, how long it takes to write, and how long a browser takes to open it.

    python benchmarks/report.py [--folder DIR] [--opens N]

Makes a run of 100 steps with 100,312 responses: 65 problems x 8 samples a step, and the eight benchmarks in their full
size at eight evaluations. JSON lines on stdout, one per figure. Opening needs playwright and chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from synthetic_responses import prose, response, write_eval, write_rollouts
from synthetic_runs import RECIPE, eval_row, metrics_row, shares

from simplerl.report.report import write_report
from simplerl.report.run_data import read_run

STEPS, PROBLEMS, SAMPLES = 100, 65, 8
SETS = {
    "aime24": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva_math": 272, "olympiadbench": 675,
    "gaokao2023en": 385, "college_math": 2818,
}  # fmt: skip
EVALUATIONS = (0, 15, 30, 45, 60, 75, 90, 100)
CHROMIUM = os.environ.get("SIMPLERL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def emit(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the run is made, and kept; a temporary one otherwise")
    parser.add_argument("--opens", type=int, default=5, help="times the page is opened")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "run"
        if not (folder / "recipe.toml").exists():
            emit(what="run", responses=make_run(folder), megabytes=megabytes(folder.rglob("*.parquet")))
        page = folder / "report.html"
        emit(what="page", **written(folder, page), megabytes=megabytes([page]))
        for figures in opened(page, given.opens):
            emit(what="open", **figures)


# --- the run ----------------------------------------------------------------------------------------------------------


def make_run(folder: Path) -> int:
    """Writes the run folder; returns the number of responses."""
    rng = random.Random(0)
    paragraphs = [prose(rng, 60) for _ in range(5000)]
    folder.mkdir(parents=True)
    metrics = [metrics_row(step, rng) for step in range(1, STEPS + 1)]
    evals = [eval_row(step, 0.0, rng, name) | {"n": SETS[name]} for step in EVALUATIONS for name in SETS]
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "evals.jsonl", evals)
    count = 0
    for step in range(1, STEPS + 1):
        names = [f"math/{rng.randrange(8000)}" for _ in range(PROBLEMS)]
        rows = [answer(rng, paragraphs, name, step, sample) for name in names for sample in range(SAMPLES)]
        write_rollouts(folder, step, rows)
        count += len(rows)
    for step in EVALUATIONS:
        for name, size in SETS.items():
            rows = [answer(rng, paragraphs, f"{name}/{i}", step, 0) for i in range(size)]
            write_eval(folder, step, name, 0.0, rows)
            count += len(rows)
    (folder / "recipe.toml").write_text(RECIPE.format(seed=0, steps=STEPS))
    return count


def answer(rng: random.Random, paragraphs: list[str], problem: str, step: int, sample: int) -> dict[str, Any]:
    """A response of about 300 words that is right as often as the made-up policy of that step."""
    right = rng.random() < shares(step)["greedy"]
    extracted = "1" if right else str(rng.randrange(2, 99))
    text = "\n\n".join(rng.choices(paragraphs, k=max(1, round(rng.gauss(5, 2)))))
    return response(
        problem,
        verdict="correct" if right else "wrong",
        question=rng.choice(paragraphs)[:200],
        text=f"{text} So the answer is \\boxed{{{extracted}}}.",
        extracted=extracted,
        sample_index=sample,
        response_tokens=len(text) // 4,
    )


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- the page ---------------------------------------------------------------------------------------------------------


def written(folder: Path, page: Path) -> dict[str, float]:
    begun, used = time.perf_counter(), time.process_time()
    write_report([read_run(folder)], page)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": round(peak)}


def opened(page: Path, times: int) -> Iterator[dict[str, Any]]:
    """Seconds from the beginning of the load until the browser of responses answers, in a fresh context each."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    if CHROMIUM is None:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        measured = [open_once(browser, page) for _ in range(times)]
        names = ("painted_seconds", "interactive_seconds", "search_seconds")
        yield {name: median(one[name] for one in measured) for name in names} | {"opens": times}
        yield {"worst_interactive_seconds": max(one["interactive_seconds"] for one in measured)}
        browser.close()


def open_once(browser: Any, path: Path) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1240, "height": 900})
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    page.wait_for_function("document.documentElement.dataset.ready")
    ready = float(page.evaluate("document.documentElement.dataset.ready"))
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    searched = page.evaluate(
        "(() => { const begun = performance.now(); document.getElementById('search').value = 'prime';"
        " refresh(); return performance.now() - begun; })()"
    )
    context.close()
    figures = {"painted_seconds": painted, "interactive_seconds": ready, "search_seconds": searched}
    return {name: round(value / 1000, 3) for name, value in figures.items()}


def megabytes(paths: Any) -> float:
    return round(sum(path.stat().st_size for path in paths) / 1e6, 2)


if __name__ == "__main__":
    main()
