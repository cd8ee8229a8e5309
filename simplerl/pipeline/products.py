"""Products of stages, and how other stages name them: `{STAGE}`, anywhere in a setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simplerl.errors import ConfigError

MADE = {"train": "exports/final", "sft": "exports/final", "distill": "kept.jsonl"}
"""What other stages can use, inside the stage's folder."""

FINISHED = MADE | {"eval": "results.json", "report": "report.html"}
"""What exists when a stage is done, inside its folder."""

_STANDS_FOR = re.compile(r"\{([\w-]+)\}")


def stages_named(value: Any) -> tuple[str, ...]:
    """Stages that settings name, at any depth, in order of first appearance."""
    if isinstance(value, str):
        found = _STANDS_FOR.findall(value)
    elif isinstance(value, Mapping | Sequence):
        inner = value.values() if isinstance(value, Mapping) else value
        found = [name for one in inner for name in stages_named(one)]
    else:
        found = []
    return tuple(dict.fromkeys(found))


def filled(value: Any, stands_for: Mapping[str, str]) -> Any:
    """The value with every `{STAGE}` replaced by that stage's product."""
    if isinstance(value, str):
        return _STANDS_FOR.sub(lambda match: stands_for[match[1]], value)
    if isinstance(value, Mapping):
        return {key: filled(one, stands_for) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [filled(one, stands_for) for one in value]
    return value


def check_named(value: Any, earlier: Mapping[str, str]) -> None:
    """Raise `ConfigError` unless every stage that a value names is in `earlier`, by `run`, and has a product."""
    there = [name for name, run in earlier.items() if run in MADE]
    unknown = [f"{{{name}}}" for name in stages_named(value) if name not in there]
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: no stage of that name before this one makes a model or responses; "
            f"stages that do: {', '.join(there) or 'none'}"
        )


def path_of(run: str, folder: Path) -> Path:
    """The product of a finished stage."""
    return folder / FINISHED[run]
