"""What each kind of stage hands to what does it, and the tables of a report stage."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
from synthetic_evals import write_eval
from synthetic_runs import write_run

from simplerl.config import PipelineRecipe, validate_recipe
from simplerl.pipeline import report, stages
from simplerl.pipeline.plan import Task, make_plan
from simplerl.storage.folder import recipe_table
from simplerl.storage.records import RunFolder

pytestmark = pytest.mark.unit

ZERO = {"data": {"source": "arithmetic"}, "train": {"steps": 2}}
STAGES: dict[str, Any] = {
    "zero": {"run": "train", "recipe": "zero.toml"},
    "more": {"run": "train", "recipe": "zero.toml", "set": {"model": {"path": "{zero}"}}},
    "before": {"run": "eval", "model": "tiny-math-base", "suite": "arithmetic", "label": "base"},
    "after": {"run": "eval", "model": "{zero}", "suite": "arithmetic"},
    "report": {"run": "report", "runs": ["zero"]},
}


def tasks(root: Path) -> dict[str, Task]:
    root.mkdir(exist_ok=True)
    (root.parent / "zero.toml").write_text(tomli_w.dumps(ZERO))
    named = {name: dict(stage) for name, stage in STAGES.items()}
    for name in ("zero", "more"):
        named[name]["recipe"] = str(root.parent / "zero.toml")
    recipe = validate_recipe({"kind": "pipeline", "stages": named, "seed": 4}, kind=PipelineRecipe)
    return {task.name: task for task in make_plan(recipe, root).tasks}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What training was called with, instead of a training."""
    module: Any = ModuleType("simplerl.train.run")
    calls: list[Any] = []
    module.train = lambda recipe, folder, *, plain: calls.append((recipe, folder, plain))
    monkeypatch.setitem(sys.modules, "simplerl.train.run", module)
    return calls


def test_training_gets_the_resolved_recipe(tmp_path: Path, trained: list[Any]) -> None:
    task = tasks(tmp_path / "p")["more"]
    stages.do(task, plain=True, notice=print)
    assert trained == [(task.recipe, tmp_path / "p" / "more", True)]
    assert not task.folder.exists()


def test_a_run_that_was_begun_goes_on_where_its_folder_was_moved_to(tmp_path: Path, trained: list[Any]) -> None:
    """Its recipe names the model by its place, and a run refuses another recipe."""
    task = tasks(tmp_path / "p")["more"]
    RunFolder(task.folder).create(task.recipe, {})
    (tmp_path / "p").rename(tmp_path / "q")
    moved = tasks(tmp_path / "q")["more"]
    assert moved.recipe != task.recipe and moved.fingerprint == task.fingerprint
    stages.do(moved, plain=True, notice=print)
    RunFolder(moved.folder).open(moved.recipe, {})


def test_a_distillation_sees_for_itself_that_other_answers_are_to_be_kept(tmp_path: Path) -> None:
    """Its recipe is restated but for what it keeps: it compares that with what is kept already."""
    asked = {"kind": "distill", "teacher": {"name": "local", "model": "m"}, "data": {"source": "arithmetic"}}
    (tmp_path / "asked.toml").write_text(tomli_w.dumps(asked))

    def task(model: str, per_problem: int) -> Task:
        settings = {"teacher": {"model": model}, "filter": {"per_problem": per_problem}}
        stage = {"run": "distill", "recipe": str(tmp_path / "asked.toml"), "set": settings}
        recipe = validate_recipe({"kind": "pipeline", "stages": {"asked": stage}}, kind=PipelineRecipe)
        return make_plan(recipe, tmp_path / "p").tasks[0]

    before, after = task("here", 1), task("there", 2)
    assert before.recipe is not None and before.recipe.filter.per_problem == 1
    before.folder.mkdir(parents=True)
    (before.folder / "recipe.toml").write_text(tomli_w.dumps(recipe_table(before.recipe)))
    stages.restate(after)
    stored = tomllib.loads((after.folder / "recipe.toml").read_text())
    assert (stored["teacher"]["model"], stored["filter"]["per_problem"]) == ("there", 1)


def test_a_report_compares_with_the_first_evaluation_and_shows_the_runs(tmp_path: Path) -> None:
    root = tmp_path / "p"
    found = tasks(root)
    write_run(root / "zero", steps=4)
    write_eval(root / "before", {"toy": ["c"] * 10 + ["w"] * 50})
    write_eval(root / "after", {"toy": ["c"] * 40 + ["w"] * 20})
    stages.do(found["report"], plain=None, notice=print)

    folder = root / "report"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.json", "report.html"}
    table = (folder / "table.md").read_text()
    rows = [line.split(" | ")[0] for line in table.splitlines()]
    assert rows.index("| base") < rows.index("| after"), "a row per model, as in the publication"
    base, after = json.loads((folder / "table.json").read_text())["things"]
    assert (base["name"], after["benchmarks"]["toy"]["difference"]["value"]) == ("base", 0.5)
    assert "after - base" in report.table(tuple(found.values()))


def test_without_an_evaluation_there_is_no_table(tmp_path: Path) -> None:
    assert report.table([tasks(tmp_path / "p")["zero"]]) == ""
