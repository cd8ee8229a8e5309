"""A pipeline is checked as a whole before anything runs; a fingerprint holds all that decides what a stage makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from simplerl.config import PipelineRecipe, load_recipe, validate_recipe
from simplerl.errors import ConfigError
from simplerl.pipeline.plan import Task, make_plan
from simplerl.pipeline.products import filled, stages_named

pytestmark = pytest.mark.unit

ZERO = {
    "model": {"path": "tiny-math-base"},
    "data": {"source": "arithmetic"},
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2},
    "train": {"steps": 2, "minibatch_size": 8},
}
SFT = {"kind": "sft", "data": {"source": {"name": "file", "data_path": "kept.jsonl"}}, "train": {"data_epochs": 1}}
STAGES: dict[str, Any] = {
    "zero": {"run": "train", "recipe": "zero.toml"},
    "sft": {"run": "sft", "recipe": "sft.toml", "set": {"model": {"path": "{zero}"}}},
    "long": {"run": "train", "recipe": "zero.toml", "set": {"model": {"path": "{sft}"}, "train": {"steps": 3}}},
    "before": {"run": "eval", "model": "tiny-math-base", "suite": "arithmetic", "trained": False},
    "after": {"run": "eval", "model": "{long}", "suite": "arithmetic", "label": "trained"},
    "report": {"run": "report", "runs": ["zero", "long"]},
}
ALL = set(STAGES)


@pytest.fixture(autouse=True)
def _recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero.toml").write_text(tomli_w.dumps(ZERO))
    Path("sft.toml").write_text(tomli_w.dumps(SFT))


def tasks(root: str = "runs/p", stages: dict[str, Any] = STAGES, **more: Any) -> dict[str, Task]:
    recipe = validate_recipe({"kind": "pipeline", "stages": stages, **more}, kind=PipelineRecipe)
    return {task.name: task for task in make_plan(recipe, Path(root)).tasks}


def changed(stage: str, **values: Any) -> dict[str, Any]:
    return STAGES | {stage: STAGES[stage] | values}


def differ(one: dict[str, Task], other: dict[str, Task]) -> set[str]:
    return {name for name in one if one[name].fingerprint != other[name].fingerprint}


def refused(stages: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        tasks(stages=stages)
    assert not Path("runs").exists()
    return str(caught.value)


# --- what stages take -------------------------------------------------------------------------------------------------


def test_a_stage_is_named_anywhere_in_the_settings() -> None:
    value = {"a": ["{zero}", {"b": "see {zero}/config.json and {kept}"}], "c": 3, "d": "\\boxed{}"}
    assert stages_named(value) == ("zero", "kept")
    assert filled(value, {"zero": "/z", "kept": "/k"}) == {
        "a": ["/z", {"b": "see /z/config.json and /k"}],
        "c": 3,
        "d": "\\boxed{}",
    }


def test_products_are_put_in_the_place_of_names(tmp_path: Path) -> None:
    found = tasks()
    assert found["sft"].recipe.model.path == str(tmp_path / "runs/p/zero/exports/final")
    assert found["long"].recipe.model.path == str(tmp_path / "runs/p/sft/exports/final")
    assert {name: [each.name for each in task.takes] for name, task in found.items()} == {
        "zero": [],
        "sft": ["zero"],
        "long": ["sft"],
        "before": [],
        "after": ["long"],
        "report": ["before", "after", "zero", "long"],
    }


def test_every_stage_has_the_seed_unless_it_sets_its_own() -> None:
    found = tasks(stages=changed("long", set={"seed": 5}), seed=7)
    assert (found["zero"].recipe.seed, found["sft"].recipe.seed, found["long"].recipe.seed) == (7, 7, 5)


def test_one_setting_of_one_stage_is_overridden_on_the_command_line() -> None:
    Path("mine.toml").write_text(tomli_w.dumps({"kind": "pipeline", "stages": STAGES}))
    overrides = ["stages.zero.set.train.steps=5", "seed=1"]
    plan = make_plan(load_recipe("mine.toml", overrides, kind=PipelineRecipe), Path("runs/p"))
    zero, long = plan.tasks[0].recipe, plan.tasks[2].recipe
    assert (zero.train.steps, zero.seed, long.train.steps) == (5, 1, 3)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "values", "words"),
    [
        ("sft", {"set": {"model": {"path": "{zer}"}}}, "stages.sft: {zer}: no stage of that name before this one"),
        ("sft", {"set": {"model": {"path": "{long}"}}}, "stages that do: zero"),
        ("after", {"model": "{before}"}, "stages.after: {before}: no stage of that name before this one makes"),
        ("after", {"suite": "arithmetics"}, "stages.after: no suite 'arithmetics'; did you mean 'arithmetic'?"),
        ("long", {"set": {"train": {"stepz": 3}}}, "stages.long: train.stepz=3: unknown setting; did you"),
        ("long", {"set": {"train": {"steps": {"x": 1}}}}, "stages.long: set: steps=2 is a value and has no settings"),
        ("sft", {"recipe": "zero.toml"}, "stages.sft: zero.toml is a recipe for `simplerl train`, but the stage says"),
        ("sft", {"recipe": "gone.toml"}, "stages.sft: recipe gone.toml does not exist"),
        ("report", {"runs": ["zero", "after"]}, "stages.report: runs names after; training stages before it: zero"),
    ],
)
def test_a_mistake_names_its_stage_before_anything_runs(stage: str, values: dict[str, Any], words: str) -> None:
    assert words in refused(changed(stage, **values))


def test_every_line_of_what_is_wrong_names_the_stage() -> None:
    message = refused(changed("long", set={"train": {"steps": 0}, "rollout": {"top_p": 2}}))
    assert [line.split(":")[0] for line in message.splitlines()] == ["stages.long", "stages.long"]


def test_a_report_needs_an_evaluation_and_a_name_is_reserved() -> None:
    assert "no eval stage before it" in refused({"zero": STAGES["zero"], "report": {"run": "report"}})
    assert "give the stage another name" in refused({"superseded": STAGES["zero"]})


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_setting_changes_its_stage_and_all_that_come_of_it() -> None:
    before = tasks()
    assert differ(before, tasks()) == set()
    assert differ(before, tasks(stages=changed("zero", set={"train": {"steps": 5}}))) == ALL - {"before"}
    assert differ(before, tasks(stages=changed("after", trained=False))) == {"after", "report"}
    assert differ(before, tasks(seed=1)) == ALL


def test_the_recipes_own_file_counts_and_its_name_does_not() -> None:
    before = tasks()
    Path("other.toml").write_text(tomli_w.dumps(ZERO))
    assert differ(before, tasks(stages=changed("zero", recipe="other.toml"))) == set()
    Path("other.toml").write_text(tomli_w.dumps(ZERO | {"actor": {"learning_rate": 1e-3}}))
    assert differ(before, tasks(stages=changed("zero", recipe="other.toml"))) == ALL - {"before"}


@pytest.mark.parametrize(
    "aside", [{"checkpoint": {"every": 1}}, {"track": {"tensorboard": True}}, {"description": "another"}]
)
def test_what_does_not_touch_the_results_does_not_count(aside: dict[str, Any]) -> None:
    assert differ(tasks(), tasks(stages=changed("zero", set=aside))) == set()


def test_where_a_teacher_is_does_not_count_and_what_is_kept_does() -> None:
    Path("distill.toml").write_text(tomli_w.dumps({"kind": "distill", "data": {"source": "arithmetic"}}))

    def found(keep: int = 1, **teacher: Any) -> dict[str, Task]:
        settings = {"teacher": {"name": "openai", "model": "m", "url": "http://a/v1"} | teacher}
        settings |= {"filter": {"per_problem": keep}}
        source = {"name": "file", "data_path": "{ask}"}
        ask = {"run": "distill", "recipe": "distill.toml", "set": settings}
        sft = {"run": "sft", "recipe": "sft.toml", "set": {"data": {"source": source}}}
        return tasks(stages={"ask": ask, "sft": sft})

    assert found()["sft"].recipe.data.source.data_path == str(Path("runs/p/ask/kept.jsonl").absolute())
    assert differ(found(), found(url="http://b/v1")) == set()
    assert differ(found(), found(keep=2)) == differ(found(), found(model="n")) == {"ask", "sft"}


def test_responses_are_no_model() -> None:
    Path("distill.toml").write_text(tomli_w.dumps({"kind": "distill", "data": {"source": "arithmetic"}}))
    teacher = {"name": "local", "model": "tiny-math-base"}
    ask = {"run": "distill", "recipe": "distill.toml", "set": {"teacher": teacher}}
    message = refused({"ask": ask, "test": {"run": "eval", "model": "{ask}", "suite": "arithmetic"}})
    assert message == "stages.test: model='{ask}': ask makes responses, not a model"


def test_a_label_is_the_reports_business() -> None:
    assert differ(tasks(), tasks(stages=changed("after", label="another"))) == {"report"}


def test_a_folder_may_be_moved() -> None:
    assert differ(tasks("runs/p"), tasks("elsewhere/q")) == set()


def test_a_file_of_ones_own_counts_by_its_content() -> None:
    plugin = Path("mine.py")
    plugin.write_text("def reward(rollout, verdict):\n    return 1.0\n")
    stages = changed("zero", set={"reward": {"path": "mine.py"}})
    before = tasks(stages=stages)
    plugin.write_text("def reward(rollout, verdict):\n    return 2.0\n")
    assert differ(before, tasks(stages=stages)) == ALL - {"before"}


def test_a_suite_counts_by_its_settings() -> None:
    suite = {"template": "chat", "benchmarks": ["arithmetic-test"], "max_tokens": 8}
    Path("mine.toml").write_text(tomli_w.dumps(suite | {"description": "one"}))
    stages = changed("after", suite="mine.toml")
    before = tasks(stages=stages)
    Path("mine.toml").write_text(tomli_w.dumps(suite | {"description": "two"}))
    assert differ(before, tasks(stages=stages)) == set()
    Path("mine.toml").write_text(tomli_w.dumps(suite | {"max_tokens": 9}))
    assert differ(before, tasks(stages=stages)) == {"after", "report"}
