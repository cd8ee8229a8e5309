"""Every diff of docs/extending.md applies to the package, and every check below a diff passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
WANTED = (
    "A loss aggregation",
    "An importance correction",
    "An optimiser",
    "A reward with shaping",
    "An algorithm",
    "A verifiable domain",
    "An engine",
)

pytestmark = pytest.mark.e2e


def test_the_page_has_a_section_for_everything_that_can_be_added():
    assert tuple(title for title, _ in SECTIONS) == WANTED


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_the_diff_applies_and_its_check_passes(title, text, tmp_path):
    (diff,), (check,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("diff", "python"))
    shutil.copytree(ROOT / "simplerl", tmp_path / "simplerl", ignore=shutil.ignore_patterns("__pycache__"))
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    before = subprocess.run([sys.executable, "-c", check], env=environment, **run)
    assert before.returncode != 0, "the check does not depend on the diff"
    applied = subprocess.run(["git", "apply", "--verbose", "-"], input=diff, env=environment, **run)
    assert applied.returncode == 0, applied.stderr
    after = subprocess.run([sys.executable, "-c", check], env=environment, **run)
    assert after.returncode == 0, after.stderr
