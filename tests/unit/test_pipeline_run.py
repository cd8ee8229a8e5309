"""Finished stages are skipped, started ones resumed, changed ones moved aside and run again."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from simplerl.cli.main import run as command
from simplerl.config import PipelineRecipe, load_recipe
from simplerl.errors import SimpleRLError
from simplerl.pipeline import run as runs
from simplerl.pipeline import stages
from simplerl.pipeline.plan import Task, make_plan

pytestmark = pytest.mark.unit

ZERO = {
    "data": {"source": "arithmetic"},
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2},
    "train": {"steps": 2, "minibatch_size": 8},
}
MINE = {
    "kind": "pipeline",
    "stages": {
        "zero": {"run": "train", "recipe": "zero.toml"},
        "more": {"run": "train", "recipe": "zero.toml", "set": {"model": {"path": "{zero}"}}},
        "test": {"run": "eval", "model": "{more}", "suite": "arithmetic"},
        "table": {"run": "report"},
    },
}
NAMES = list(MINE["stages"])


class Stages:
    """Takes the place of what does a stage: notes it, and makes the product unless told otherwise."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.instead: dict[str, Callable[[Task], None]] = {}

    def do(self, task: Task, **_: Any) -> None:
        self.done.append(task.name)
        self.instead.get(task.name, make)(task)


def make(task: Task) -> None:
    task.product.parent.mkdir(parents=True, exist_ok=True)
    task.product.write_text(task.fingerprint)


@pytest.fixture
def doing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    monkeypatch.chdir(tmp_path)
    Path("zero.toml").write_text(tomli_w.dumps(ZERO))
    Path("mine.toml").write_text(tomli_w.dumps(MINE))
    fake = Stages()
    monkeypatch.setattr(stages, "do", fake.do)
    return fake


def go(doing: Stages, *overrides: str, root: str = "runs/mine") -> tuple[list[str], list[str], bool]:
    """The stages that were done, the lines that were said, and whether all is done."""
    doing.done, lines = [], []
    plan = make_plan(load_recipe("mine.toml", overrides, kind=PipelineRecipe), Path(root))
    finished = runs.run(plan, say=lines.append)
    return doing.done, lines, finished


def state(root: str = "runs/mine") -> dict[str, Any]:
    return json.loads((Path(root) / "state.json").read_text())


def test_every_stage_is_done_once(doing: Stages) -> None:
    done, lines, finished = go(doing)
    assert (done, finished) == (NAMES, True)
    assert lines[0] == "zero: train done in 0:00:00, runs/mine/zero/exports/final"
    done, lines, finished = go(doing)
    assert (done, finished) == ([], True)
    assert lines == [f"{name}: skipped, done and unchanged (0:00:00)" for name in NAMES]
    assert not Path("runs/mine/superseded").exists()


def test_the_folder_says_what_was_asked_and_what_was_done(doing: Stages) -> None:
    go(doing)
    go(doing, "stages.more.set.train.steps=3")
    root = Path("runs/mine")
    assert len(json.loads((root / "environment.json").read_text())) == 2
    assert tomllib.loads((root / "pipeline.toml").read_text())["stages"]["more"]["set"]["train"] == {"steps": 3}
    known = state()["more"]
    assert (known["product"], len(known["seconds"]), known["done"]) == ("more/exports/final", 1, True)
    assert known["fingerprint"] == (root / known["product"]).read_text()


def test_what_changed_is_kept_aside_and_done_anew_with_all_that_comes_of_it(doing: Stages) -> None:
    go(doing)
    first = state()
    done, lines, _ = go(doing, "stages.more.set.train.steps=3")
    assert done == ["more", "test", "table"]
    assert lines[1] == "more: changed; its earlier output is in runs/mine/superseded/more-1"
    go(doing, "stages.more.set.train.steps=4")
    kept = Path("runs/mine/superseded")
    assert {path.name for path in kept.iterdir()} == {f"{name}-{n}" for name in NAMES[1:] for n in (1, 2)}
    assert (kept / "more-1/exports/final").read_text() == first["more"]["fingerprint"]


def test_settings_that_do_not_touch_the_results_redo_nothing(doing: Stages) -> None:
    go(doing)
    assert go(doing, "stages.zero.set.checkpoint.every=1", "stages.more.set.track.tensorboard=true")[0] == []


def test_a_folder_may_be_moved(doing: Stages) -> None:
    go(doing)
    Path("runs/mine").rename("elsewhere")
    assert go(doing, root="elsewhere")[0] == []


def test_a_stage_whose_product_is_gone_is_gone_on_with(doing: Stages) -> None:
    go(doing)
    Path("runs/mine/more/exports/final").unlink()
    assert go(doing)[0] == ["more"]
    assert not Path("runs/mine/superseded").exists()


def test_a_folder_that_nothing_is_known_of_is_kept_aside(doing: Stages) -> None:
    go(doing)
    Path("runs/mine/state.json").unlink()
    assert go(doing)[0] == NAMES
    assert len(list(Path("runs/mine/superseded").iterdir())) == len(NAMES)


def fail(task: Task) -> None:
    task.folder.mkdir(parents=True, exist_ok=True)
    raise SimpleRLError("broken")


def interrupt(task: Task) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("instead", [lambda task: None, interrupt], ids=["returns without its product", "Ctrl-C"])
def test_a_stage_that_was_stopped_stops_the_pipeline_and_is_gone_on_with(doing: Stages, instead) -> None:
    doing.instead["more"] = instead
    done, lines, finished = go(doing)
    assert (done, finished) == (["zero", "more"], False)
    assert lines[-1] == "more: train stopped after 0:00:00; run the same command again to resume"
    doing.instead.clear()
    done, _, finished = go(doing)
    assert (done, finished) == (NAMES[1:], True)
    assert (len(state()["more"]["seconds"]), len(state()["zero"]["seconds"])) == (2, 1)


def test_a_stage_that_failed_is_gone_on_with_unless_it_changed(doing: Stages) -> None:
    doing.instead["more"] = fail
    with pytest.raises(SimpleRLError, match="broken"):
        go(doing)
    assert state()["more"]["done"] is False and "test" not in state()
    with pytest.raises(SimpleRLError, match="broken"):
        go(doing)
    assert not Path("runs/mine/superseded").exists()
    doing.instead.clear()
    assert go(doing, "stages.more.set.train.steps=3")[0] == NAMES[1:]
    assert Path("runs/mine/superseded/more-1").is_dir()
    assert len(state()["more"]["seconds"]) == 1


def test_the_folder_of_something_else_is_refused(doing: Stages) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/recipe.toml").write_text("")
    with pytest.raises(SimpleRLError, match=r"runs/mine holds no pipeline, it has a recipe\.toml; name another folder"):
        go(doing)
    assert doing.done == []


def test_a_damaged_state_is_said_with_what_to_do(doing: Stages) -> None:
    go(doing)
    Path("runs/mine/state.json").write_text("{")
    with pytest.raises(SimpleRLError, match=r"state\.json is damaged: .* Remove it to run every stage again"):
        go(doing)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done(doing: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    def dry(*more: str) -> list[list[str]]:
        assert command(["pipeline", "mine.toml", "--dry-run", *more]) == 0
        return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:]]

    assert dry()[1] == ["more", "train", "zero.toml", "zero", "runs/mine/more/exports/final", "to do"]
    assert doing.done == [] and not Path("runs").exists()
    doing.instead["test"] = lambda task: None
    go(doing)
    assert [row[-1] for row in dry()] == ["done", "done", "to resume", "to do"]
    changed = dry("--set", "stages.more.set.train.steps=3")
    assert [row[-1] for row in changed] == ["done", "changed, to run again", "to do", "to do"]


def test_a_pipeline_that_was_stopped_exits_with_one(doing: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    doing.instead["zero"] = lambda task: None
    assert command(["pipeline", "mine.toml"]) == 1
    assert "zero: train stopped" in capsys.readouterr().out


def test_unknown_templates_are_said_before_anything_runs(doing: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["pipeline", "mine.toml", "--set", "stages.more.set.data.template=chatt"]) == 2
    assert "stages.more: no template 'chatt'; did you mean 'chat'?" in capsys.readouterr().err
    assert doing.done == [] and not Path("runs").exists()


def test_answers_outlast_other_rules_of_keeping_them(doing: Stages, tmp_path: Path) -> None:
    """A teacher may be paid for: with another `keep` its answers are judged again where they are, never asked again."""
    asked = {"kind": "distill", "teacher": {"name": "local", "model": "m"}, "data": {"source": "arithmetic"}}
    Path("asked.toml").write_text(tomli_w.dumps(asked))
    table = {"kind": "pipeline", "stages": {"asked": {"run": "distill", "recipe": "asked.toml"}}}
    Path("mine.toml").write_text(tomli_w.dumps(table))

    assert go(doing)[0] == ["asked"]
    assert go(doing)[0] == []
    done, lines, _ = go(doing, "stages.asked.set.filter.per_problem=2")
    assert done == ["asked"] and "changed" not in lines[0]
    assert not Path("runs/mine/superseded").exists()
    assert go(doing, "stages.asked.set.filter.per_problem=2")[0] == []

    done, lines, _ = go(doing, "stages.asked.set.sampling.samples_per_problem=9")
    assert done == ["asked"] and lines[0].startswith("asked: changed;")
    assert Path("runs/mine/superseded/asked-1").exists()
