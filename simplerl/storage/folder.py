"""What the folders of runs, evaluations, distillations and pipelines have in common.

    recipe.toml          the resolved recipe (eval.toml, pipeline.toml); with it the folder is begun
    environment.json     one entry per session
    .lock                held by the process that writes

The same command resumes what a folder holds; another recipe is refused with the settings that differ.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from simplerl.errors import ConfigError
from simplerl.storage import atomic
from simplerl.storage.files import locked
from simplerl.storage.jsonl import Row

Table = dict[str, Any]


class RecipeFolder:
    """A folder that holds what one recipe makes."""

    def __init__(self, path: Path | str, recipe_file: str = "recipe.toml") -> None:
        self.path = Path(path)
        self.recipe_path = self.path / recipe_file

    @property
    def exists(self) -> bool:
        """True if something was begun here."""
        return self.recipe_path.exists()

    def lock(self, timeout: float = 3.0) -> AbstractContextManager[None]:
        """Hold the folder for this process, see `simplerl.storage.files.locked`."""
        return locked(self.path, timeout)

    def stored_recipe(self) -> Table | None:
        """The recipe as a table, without settings that are None; None: nothing was begun. Raises `ConfigError`."""
        try:
            return tomllib.loads(self.recipe_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.recipe_path} is damaged: {error}") from error

    def read_environments(self) -> list[Table]:
        """One entry per session, oldest first; empty where the file is missing or damaged."""
        try:
            entries = orjson.loads((self.path / "environment.json").read_bytes())
        except (OSError, ValueError):
            return []
        return entries if isinstance(entries, list) else []

    def write_session(self, recipe: Row, environment: Row) -> None:
        """Add a session's environment, and store the recipe as it reads now."""
        before = self.read_environments() if self.exists else []
        atomic.write_json(self.path / "environment.json", [*before, dict(environment)])
        # The recipe comes last: with it the folder is begun.
        self.write_recipe(recipe)

    def write_recipe(self, recipe: Row) -> None:
        import tomli_w

        atomic.write_text(self.recipe_path, tomli_w.dumps(recipe))

    def refuse(self, found: Sequence[str], holds: str, remedy: str) -> None:
        """Raise `ConfigError` if there are `differences`: what the folder holds, each difference, and the remedy."""
        if found:
            raise ConfigError(f"{self.path} holds {holds}:\n  " + "\n  ".join(found) + f"\n{remedy}")


def recipe_table(recipe: BaseModel) -> Table:
    """A resolved recipe as TOML can hold it: None is left out."""
    return recipe.model_dump(mode="json", exclude_none=True)


def differences(stored: Row, given: Row, may_change: tuple[str, ...] = ()) -> list[str]:
    """One line per setting that differs, sorted by name; settings that begin with `may_change` may differ."""
    old, new = flat(stored), flat(given)
    keys = sorted(key for key in old.keys() | new.keys() if not key.startswith(may_change))
    return [
        f"{key}: stored {old.get(key, '(not set)')!r}, given {new.get(key, '(not set)')!r}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def flat(table: Row, prefix: str = "") -> Table:
    """Every setting under its dotted name."""
    found: Table = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
