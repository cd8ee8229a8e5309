"""What every data source and benchmark shares: settings, loading, and what makes a problem fit for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from simplerl import plugins
from simplerl.config import PluginConfig, apply_overrides
from simplerl.data.rows import Keys, problems_from
from simplerl.data.store import StoredSet, load_rows
from simplerl.errors import ConfigError, DataError
from simplerl.types import Problem

STORED_KEYS = Keys(question="problem", answer="answer", id="id")


class SourceConfig(PluginConfig):
    """Settings every data source has."""


class StoredConfig(SourceConfig):
    """Settings of a published set."""

    data_path: str | None = None
    """Folder that holds the set's files; empty: SIMPLERL_DATA, the cache, then the Hugging Face hub."""


def source_config(name: str, overrides: Sequence[str] = ()) -> PluginConfig:
    """The settings of a source from its name and `key=value` overrides. Raises `ConfigError`."""
    table: dict[str, Any] = apply_overrides({"name": name}, overrides)
    module = plugins.load("data", name, table.get("path"))
    try:
        return getattr(module, "Config", SourceConfig).model_validate(table)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"data source {name}: {'; '.join(lines)}") from None


def load_source(config: PluginConfig) -> list[Problem]:
    """Every problem of a source as it was published, fit for training or not."""
    return list(plugins.load("data", config.name, config.path).load(config))


def load_problems(
    config: PluginConfig, is_usable: Callable[[Problem], bool] = lambda problem: problem.has_answer
) -> tuple[list[Problem], list[str]]:
    """Load the problems of a source that can be trained on, and a notice for everything repaired or dropped.

    A source may define `repair(problems) -> (problems, notices)`. Then problems that are not usable are dropped; pass
    the verifier's rule, see `simplerl.verifiers.base.usable_problems`. Raises `DataError` if nothing is left.

    A source that knows how many problems remain may define `USABLE_PROBLEMS`.
    """
    problems = load_source(config)
    repair = getattr(plugins.load("data", config.name, config.path), "repair", None)
    repaired, notices = repair(problems) if repair else (problems, [])
    usable = [problem for problem in repaired if is_usable(problem)]
    if len(usable) < len(repaired):
        lost = [problem.id for problem in repaired if not is_usable(problem)]
        notices = [*notices, f"{config.name}: dropped {len(lost)} without a question or an answer: {_some(lost)}"]
    if not usable:
        raise DataError(f"{config.name}: none of its {len(problems)} problems has a question and an answer")
    return usable, list(notices)


def load_benchmark(name: str, path: str | Path | None = None, *, fetch: bool = True) -> list[Problem]:
    """The problems of a benchmark. `path` is a folder with its file, the file, or a plug-in of your own (.py).

    `fetch=False` leaves the hub alone. Raises `DataError`, see `simplerl.data.store.load_rows`.
    """
    own = path is not None and Path(path).suffix == ".py"
    module = benchmark_module(name, path if own else None)
    stored = getattr(module, "SET", None)
    if stored is None:
        return list(module.load())
    return stored_problems(stored, None if own else path, fetch=fetch)


def benchmark_module(name: str, path: str | Path | None = None) -> ModuleType:
    """The plug-in of a benchmark; `minerva_math`, its published name, and `minerva-math` are the same."""
    return plugins.load("benchmarks", name.replace("_", "-"), path)


def benchmark_names() -> list[str]:
    """Every shipped benchmark under its published name."""
    modules: Mapping[str, ModuleType] = {name: benchmark_module(name) for name in plugins.available("benchmarks")}
    return [module.SET.name if hasattr(module, "SET") else name for name, module in modules.items()]


def stored_sets(module: ModuleType) -> tuple[StoredSet, ...]:
    """The published sets a source or benchmark is made of: its `SET`, or its `PARTS` where it joins several."""
    return (module.SET,) if hasattr(module, "SET") else getattr(module, "PARTS", ())


def stored_problems(stored: StoredSet, path: str | Path | None = None, *, fetch: bool = True) -> list[Problem]:
    """The problems of a published set."""
    return problems_from(load_rows(stored, path, fetch=fetch), STORED_KEYS, stored.name)


def _some(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
