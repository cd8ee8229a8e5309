"""`simplerl watch` in a real browser: the page fills itself, follows the run, and outlives it."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from synthetic_responses import response, write_eval
from synthetic_runs import eval_row, metrics_row, write_run

from simplerl.storage.files import locked

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-c", "from simplerl.cli.main import main; main()", "watch"]
PATIENCE = 100_000


@pytest.fixture
def watched(tmp_path):
    """The command on a run that is not there yet; gives the run's folder, the address and the process."""
    folder = tmp_path / "run"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    arguments = [*COMMAND, str(folder), "--port", "0"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        line = process.stdout.readline()
        yield folder, line.split(" at ")[1].split()[0], process
        process.kill()


def add_step(folder, step, text="a new response"):
    rng = random.Random(step)
    write_eval(folder, step, "arithmetic-test", 0.0, [response(f"arithmetic/{i}", text=text) for i in range(40)])
    rows = {"evals.jsonl": eval_row(step, 0.0, rng), "metrics.jsonl": metrics_row(step, rng)}
    for name, row in rows.items():
        with (folder / name).open("a") as file:
            file.write(json.dumps(row) + "\n")


def says(page, text):
    page.get_by_text(text).first.wait_for(timeout=PATIENCE)


def test_a_page_fills_itself_follows_its_run_and_outlives_it(watched, open_page):
    folder, url, process = watched
    page = open_page(url)
    assert "Nothing to show yet" in page.locator("main").inner_text()
    says(page, f"Waiting for a run in {folder}.")

    made = write_run(folder.with_name("made"), steps=10)
    (made / "recipe.toml").write_text((made / "recipe.toml").read_text().replace("steps = 10", "steps = 60"))
    made.rename(folder)
    says(page, "run is at step 10 of 60")
    says(page, "No process is training here; step 10 of 60 done.")

    # What is chosen in the browser of responses stays chosen while the page is renewed.
    page.get_by_text("arithmetic/7", exact=True).click()
    page.locator("#search").fill("1")
    with locked(folder):
        says(page, "Training: step 10 of 60 done.")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "rew')
        says(page, "Training: step 10 of 60 done.")
        (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().rpartition("\n")[0] + "\n")
        add_step(folder, 11)
        says(page, "run is at step 11 of 60")
    assert page.locator("#facts").inner_text().startswith("arithmetic-test · arithmetic/7")
    assert page.locator("#panes .strip").nth(1).locator("button").last.get_attribute("title").startswith("step 11: ")
    assert page.locator("#panes pre").nth(1).inner_text() == "a new response"
    says(page, "No process is training here; step 11 of 60 done.")
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert [message for message in page.noise if "favicon" not in message] == []
    assert {address.removeprefix(url) for address in page.asked} <= {"", "status"}

    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stdout.read().strip() == "stopped watching"
    says(page, "The server does not answer")
    assert page.locator("#dynamics img").first.is_visible()


def test_a_port_in_use_is_named_with_the_way_out(watched):
    folder, url, _ = watched
    port = url.rstrip("/").rpartition(":")[2]
    done = subprocess.run([*COMMAND, str(folder), "--port", port], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"port {port} is not free" in done.stderr and "--port 0" in done.stderr
