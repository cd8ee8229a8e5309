"""What every folder of ours does with its recipe, its sessions and its lock."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from simplerl.errors import ConfigError, SimpleRLError
from simplerl.evaluation.folder import EvalFolder
from simplerl.evaluation.suite import Part, Plan
from simplerl.storage.folder import RecipeFolder, differences

pytestmark = pytest.mark.unit


def test_a_folder_begins_with_its_recipe_and_counts_sessions_from_there(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path / "new", "mine.toml")
    assert not folder.exists and folder.stored_recipe() is None and folder.read_environments() == []
    # A process that was killed before it wrote the recipe began nothing.
    folder.path.mkdir()
    (folder.path / "environment.json").write_text('[{"torch": "1"}]')

    folder.write_session({"seed": 1, "train": {"steps": 2}}, {"torch": "2"})
    folder.write_session({"seed": 1, "train": {"steps": 3}}, {"torch": "3"})

    assert folder.stored_recipe() == {"seed": 1, "train": {"steps": 3}}
    assert folder.read_environments() == [{"torch": "2"}, {"torch": "3"}]
    assert sorted(path.name for path in folder.path.iterdir()) == ["environment.json", "mine.toml"]


def test_a_damaged_recipe_is_named_and_damaged_environments_are_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("seed = = 1")
    (tmp_path / "environment.json").write_text('{"torch": ')
    with pytest.raises(ConfigError, match=r"recipe\.toml is damaged"):
        RecipeFolder(tmp_path).stored_recipe()
    assert RecipeFolder(tmp_path).read_environments() == []


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    with RecipeFolder(tmp_path).lock(), pytest.raises(SimpleRLError, match="is in use by process"):
        RecipeFolder(tmp_path).lock(timeout=0).__enter__()


def test_settings_that_differ() -> None:
    stored = {"seed": 0, "train": {"steps": 40, "lr": 0.1}, "track": {"wandb": True}}
    given = {"seed": 0, "train": {"lr": 0.2}, "track": {"wandb": False}, "new": 1}
    assert differences(stored, given, ("track.",)) == [
        "new: stored '(not set)', given 1",
        "train.lr: stored 0.1, given 0.2",
        "train.steps: stored 40, given '(not set)'",
    ]
    assert differences(stored, given)[1] == "track.wandb: stored True, given False"
    assert differences(stored, stored) == []


def test_differences_are_refused_in_lines(tmp_path: Path) -> None:
    folder = RecipeFolder(tmp_path)
    folder.refuse([], "another run", "Name another folder")
    with pytest.raises(ConfigError) as caught:
        folder.refuse(["a: stored 1, given 2", "b: stored 3, given 4"], "another run", "Name another folder")
    assert str(caught.value) == (
        f"{tmp_path} holds another run:\n  a: stored 1, given 2\n  b: stored 3, given 4\nName another folder"
    )


def test_an_evaluation_planned_before_plans_named_a_verifier_is_resumed(tmp_path: Path) -> None:
    plan = Plan(model="m", model_hash="0", template="simple", parts=(Part(name="toy", benchmark="toy"),))
    folder = EvalFolder(tmp_path)
    folder.prepare(plan, {"torch": "1"})
    stored = folder.stored_recipe()
    assert stored is not None and stored.pop("verifier") == "math"
    folder.recipe_path.write_text(tomli_w.dumps(stored))

    folder.prepare(plan, {"torch": "2"})
    assert folder.read_environments() == [{"torch": "1"}, {"torch": "2"}]
    with pytest.raises(ConfigError, match=r"holds another evaluation:\n  verifier: stored 'math', given 'http'\n"):
        folder.prepare(plan.model_copy(update={"verifier": "http"}), {})
