"""The folder of a pipeline.

pipeline.toml        the resolved recipe
environment.json     one entry per session
state.json           per stage: its fingerprint, its product, the seconds of each session, True if done
STAGE/               output of a stage
superseded/STAGE-1/  its output under other settings
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
    """Reads and writes the state of a pipeline's stages."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "pipeline.toml")

    def prepare(self, recipe: PipelineRecipe, environment: Row) -> None:
        """Create the pipeline's folder, or open it to resume; stages whose settings changed run again."""
        for name in ("recipe.toml", "eval.toml"):
            if (self.path / name).exists():
                raise ConfigError(f"{self.path} holds no pipeline, it has a {name}; name another folder with --run-dir")
        self.write_session(recipe_table(recipe), environment)

    def read_state(self) -> dict[str, Any]:
        """State of each started stage, by name."""
        path = self.path / "state.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise SimpleRLError(
                f"{path} is damaged: {error}. Remove it to run every stage again; "
                f"existing outputs are moved to {self.path / SUPERSEDED}"
            ) from error

    def standing(self, task: Task) -> Standing:
        """Progress of a stage. A finished stage whose product is missing counts as started."""
        known = self.read_state().get(task.name, {})
        if known.get("lasting") != task.lasting:
            return "changed" if task.folder.exists() else "new"
        same = known["fingerprint"] == task.fingerprint
        return "done" if same and known["done"] and task.product.exists() else "begun"

    def begin(self, task: Task) -> None:
        """Record what the stage's folder is about to hold. Outputs of other settings must be gone by then."""
        state = self.read_state()
        known = state.get(task.name, {})
        seconds = known["seconds"] if known.get("lasting") == task.lasting else []
        product = str(task.product.relative_to(self.path))
        self._write(state, task, product=product, seconds=seconds, done=False)

    def end(self, task: Task, seconds: float, *, done: bool) -> None:
        """Record a session of a stage."""
        state = self.read_state()
        known = state[task.name]
        self._write(state, task, product=known["product"], seconds=[*known["seconds"], round(seconds, 3)], done=done)

    def seconds(self, task: Task) -> float:
        """Seconds of a stage over all of its sessions."""
        return sum(self.read_state()[task.name]["seconds"])

    def supersede(self, task: Task) -> Path:
        """Move a stage's folder out of the way. Deletes nothing; returns its new place."""
        places = (self.path / SUPERSEDED / f"{task.name}-{number}" for number in count(1))
        target = next(place for place in places if not place.exists())
        target.parent.mkdir(exist_ok=True)
        task.folder.rename(target)
        return target

    def _write(self, state: dict[str, Any], task: Task, **known: Any) -> None:
        entry = {"fingerprint": task.fingerprint, "lasting": task.lasting, **known}
        atomic.write_json(self.path / "state.json", state | {task.name: entry})
