"""Recipes from TOML files and `key=value` overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from simplerl import plugins
from simplerl.config.base import OPTIMIZER_PLUGINS, explain
from simplerl.config.optimizers import OptimizerConfig
from simplerl.config.recipes import KINDS, AnyRecipe, Recipe
from simplerl.errors import ConfigError
from simplerl.formatting import did_you_mean

R = TypeVar("R", bound=AnyRecipe)


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package, by name."""
    folder = Path(str(resources.files("simplerl") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_name(name_or_path: str) -> str:
    """Name of a recipe, for folder names. Only `.toml` is an ending; other dots belong to the name."""
    return Path(name_or_path).name.removesuffix(".toml")


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The table of a shipped recipe or of a TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        shipped = shipped_recipes()
        if name_or_path not in shipped:
            hint = did_you_mean(name_or_path, shipped)
            raise ConfigError(
                f"no recipe {name_or_path!r}{hint} Shipped: {', '.join(shipped)}. Your own is a path that ends in .toml"
            )
        path = shipped[name_or_path]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.steps=3` as (["train", "steps"], 3). The value is TOML; anything else is a string."""
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} is not key=value, for example --set train.steps=3")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    return [part.strip() for part in key.split(".")], value


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply every override. A plug-in given by name alone becomes a table when a key is set in it."""
    for text in overrides:
        keys, value = parse_override(text)
        set_key(table, keys, value, f"--set {text!r}")
    return table


def merge(table: dict[str, Any], more: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put every value of another table in its place, as if each were an override."""
    for keys, value in _leaves(more):
        set_key(table, list(keys), value, where)
    return table


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    # A plug-in's name comes first: it drops the settings of another one.
    for key, value in sorted(table.items(), key=lambda item: item[0] != "name"):
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def set_key(table: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> None:
    """Puts a value into a nested table; `where` names the place that asked for it."""
    node = table
    for key in keys[:-1]:
        child = node.get(key, {})
        if not isinstance(child, str | Mapping):
            raise ConfigError(f"{where}: {key}={child!r} is a value and has no settings of its own")
        node[key] = {"name": child} if isinstance(child, str) else dict(child)
        node = node[key]
    if keys[-1] == "name" and isinstance(value, str):
        _drop_settings(node, keys[0], value)
    node[keys[-1]] = value


def _drop_settings(node: dict[str, Any], block: str, name: str) -> None:
    """Removes the settings of the plug-in named before. Optimizers share most of theirs, which stay."""
    is_optimizer = block in OPTIMIZER_PLUGINS
    former = node.get("name", "adamw" if is_optimizer and "path" not in node else None)
    if isinstance(former, str) and former != name:
        for key in node.keys() - (_optimizer_settings(name) if is_optimizer else set()):
            del node[key]


def _optimizer_settings(name: str) -> set[str]:
    """Settings of an optimizer. For a user's file, or an unknown name: the settings common to all optimizers."""
    try:
        config: type[OptimizerConfig] = plugins.load("optimizers", name).Config
    except ConfigError:
        config = OptimizerConfig
    return config.model_fields.keys() - {"path"}


@overload
def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe: ...


@overload
def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, kind: type[R]) -> R: ...


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, kind: type[Any] = Recipe) -> Any:
    """A recipe of a kind with overrides, validated. Raises `ConfigError` naming each key and what is wrong."""
    table = read_recipe(name_or_path)
    wanted, found = kind_name(kind), table.get("kind", "train")
    if found != wanted:
        raise ConfigError(f"{name_or_path} is a recipe for `simplerl {found}`, not for `simplerl {wanted}`")
    return validate_recipe(apply_overrides(table, overrides), kind=kind)


@overload
def validate_recipe(table: Mapping[str, Any]) -> Recipe: ...


@overload
def validate_recipe(table: Mapping[str, Any], *, kind: type[R]) -> R: ...


def validate_recipe(table: Mapping[str, Any], *, kind: type[Any] = Recipe) -> Any:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, kind)) from None


def kind_name(kind: type[Any]) -> str:
    """The `kind` of a recipe's class."""
    return next(name for name, each in KINDS.items() if each is kind)
