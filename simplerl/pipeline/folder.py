"""The folder of a pipeline.

pipeline.toml        the resolved recipe
environment.json     one entry per session
state.json           per stage: its fingerprint, its product, the seconds of each session, whether it is done
STAGE/               what a stage makes
superseded/STAGE-1/  what it made under other settings
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any, Literal

from simplerl.config import PipelineRecipe
from simplerl.errors import ConfigError, SimpleRLError
from simplerl.pipeline.plan import SUPERSEDED, Task
from simplerl.storage import atomic
from simplerl.storage.folder import RecipeFolder, recipe_table
from simplerl.storage.jsonl import Row

Standing = Literal["new", "changed", "begun", "done"]


class PipelineFolder(RecipeFolder):
    """Reads and writes what a pipeline knows of its stages."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "pipeline.toml")

    def prepare(self, recipe: PipelineRecipe, environment: Row) -> None:
        """Start the pipeline, or resume the one that is there; stages whose settings changed are done again."""
        for name in ("recipe.toml", "eval.toml"):
            if (self.path / name).exists():
                raise ConfigError(f"{self.path} holds no pipeline, it has a {name}; name another folder with --run-dir")
        self.write_session(recipe_table(recipe), environment)

    def read_state(self) -> dict[str, Any]:
        """What is known of each stage that was begun, by name."""
        path = self.path / "state.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise SimpleRLError(
                f"{path} is damaged: {error}. Remove it to have every stage done anew; "
                f"what is there is kept in {self.path / SUPERSEDED}"
            ) from error

    def standing(self, task: Task) -> Standing:
        """How far a stage is. One that is done but whose product is gone is merely begun."""
        known = self.read_state().get(task.name, {})
        if known.get("lasting") != task.lasting:
            return "changed" if task.folder.exists() else "new"
        same = known["fingerprint"] == task.fingerprint
        return "done" if same and known["done"] and task.product.exists() else "begun"

    def begin(self, task: Task) -> None:
        """Notes what the stage's folder is about to hold. What it holds of other settings is to be gone by then."""
        state = self.read_state()
        known = state.get(task.name, {})
        seconds = known["seconds"] if known.get("lasting") == task.lasting else []
        product = str(task.product.relative_to(self.path))
        self._write(state, task, product=product, seconds=seconds, done=False)

    def end(self, task: Task, seconds: float, *, done: bool) -> None:
        """Notes a session of a stage."""
        state = self.read_state()
        known = state[task.name]
        self._write(state, task, product=known["product"], seconds=[*known["seconds"], round(seconds, 3)], done=done)

    def seconds(self, task: Task) -> float:
        """What a stage has taken, all its sessions together."""
        return sum(self.read_state()[task.name]["seconds"])

    def supersede(self, task: Task) -> Path:
        """Moves a stage's folder out of the way; nothing is deleted. Returns where it is now."""
        places = (self.path / SUPERSEDED / f"{task.name}-{number}" for number in count(1))
        target = next(place for place in places if not place.exists())
        target.parent.mkdir(exist_ok=True)
        task.folder.rename(target)
        return target

    def _write(self, state: dict[str, Any], task: Task, **known: Any) -> None:
        entry = {"fingerprint": task.fingerprint, "lasting": task.lasting, **known}
        atomic.write_json(self.path / "state.json", state | {task.name: entry})
