"""Base classes of settings: frozen, strict, with errors that a user can act on."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from simplerl import plugins
from simplerl.errors import ConfigError


class Frozen(BaseModel):
    """Base of every block of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class PluginConfig(Frozen):
    """Settings of a plug-in; its module's `Config` extends this."""

    name: str
    """The plug-in: the name of its file."""

    path: str | None = None
    """A file of your own outside the package, used instead of a shipped plug-in. None (default): `name` is shipped."""


def plugin_config(kind: str, key: str, default: str | None, value: object) -> PluginConfig:
    """Validate settings, given as a name or a table, by the `Config` of the plug-in that they name.

    `key` is the recipe's key of the table, for messages. A module without a `Config`
    has the class named `default` in the kind's `base`. None: it has no settings.
    """
    if isinstance(value, PluginConfig):
        return value
    table = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
    if table is None:
        raise ConfigError(f"{kind}: wants a name or a table with `name`, got {value!r}")
    if "name" not in table and "path" in table:
        table["name"] = Path(table["path"]).stem
    if "name" not in table:
        raise ConfigError(f"{kind}: needs `name`; available: {', '.join(plugins.available(kind))}")
    module = plugins.load(kind, table["name"], table.get("path"))
    config: type[PluginConfig] | None = getattr(module, "Config", None)
    if config is None and default is not None:
        config = getattr(importlib.import_module(f"{plugins.package_of(kind)}.base"), default)
    config = config or PluginConfig
    try:
        return config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, config, f"{key}.")) from None


def _plugin(kind: str, key: str, default: str | None = None) -> Any:
    return BeforeValidator(partial(plugin_config, kind, key, default))


AlgorithmField = Annotated[SerializeAsAny[PluginConfig], _plugin("algorithms", "algorithm")]
RewardField = Annotated[SerializeAsAny[PluginConfig], _plugin("rewards", "reward", "RewardConfig")]
VerifierField = Annotated[SerializeAsAny[PluginConfig], _plugin("verifiers", "verifier")]
EngineField = Annotated[SerializeAsAny[PluginConfig], _plugin("engines", "engine")]
SourceField = Annotated[SerializeAsAny[PluginConfig], _plugin("data", "data.source")]
TeacherField = Annotated[SerializeAsAny[PluginConfig], _plugin("teachers", "teacher")]
OPTIMIZER_PLUGINS = {block: _plugin("optimizers", block, "OptimizerConfig") for block in ("actor", "critic")}
"""Validators of the blocks that configure an optimizer; their fields are in `simplerl.config.optimizers`."""


RENAMED: Mapping[str, str] = {
    "train.episodes": "train.data_epochs",
    "train.epochs": "train.ppo_epochs (reinforcement learning) or train.data_epochs (supervised fine-tuning)",
    "train.lanes": "train.cpu_threads",
    "engine.lanes": "engine.cpu_threads",
    "actor.floor": "actor.min_lr_ratio",
    "critic.floor": "critic.min_lr_ratio",
    "actor.moments": "actor.name; adamw-8bit keeps its state in 8 bits",
    "critic.moments": "critic.name; adamw-8bit keeps its state in 8 bits",
    "algorithm.resample_rounds": "algorithm.dynamic_sampling_rounds",
    "algorithm.reward_clip": "reward.clip",
    "algorithm.overlong_buffer": "reward.overlong_buffer",
    "algorithm.overlong_penalty": "reward.overlong_penalty",
    "cluster.patience": "cluster.heartbeat_timeout",
    "keep": "filter",
}
"""Settings of recipes written before 0.2, and their names today."""

# --- errors -----------------------------------------------------------------------------------------------------------


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Validation errors, one line each: the key, the value, the remedy. `prefix` leads to the model's own keys."""
    return "\n".join(_explain(problem, model, prefix) for problem in error.errors())


def _explain(problem: Any, model: type[BaseModel], prefix: str) -> str:
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return str(inner)
    key = prefix + ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden" and key in RENAMED:
        return f"{key} is now called {RENAMED[key]}"
    if problem["type"] == "extra_forbidden":
        return f"{key}={problem['input']!r}: unknown setting{_nearest(problem['loc'], model)}"
    if problem["type"] == "missing":
        return f"{key}: is required"
    return f"{key}={problem['input']!r}: {problem['msg']}"


def _nearest(location: Sequence[Any], model: type[BaseModel]) -> str:
    node: Any = model
    for key in location[:-1]:
        field = getattr(node, "model_fields", {}).get(key)
        # A number leads into a tuple of blocks.
        node = next(iter(get_args(node)), None) if isinstance(key, int) else field.annotation if field else None
    names = list(getattr(node, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known in this block: {', '.join(names)}" if names else ""
