"""Marks tests as the hand-worked values of settings, and finds settings that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from simplerl.config import PluginConfig

Test = TypeVar("Test", bound=Callable[..., None])
_WORKED: set[str] = set()


def worked(*settings: str) -> Callable[[Test], Test]:
    """The test below holds a value worked by hand for each of these settings, such as "ppo.gamma"."""

    def mark(test: Test) -> Test:
        _WORKED.update(settings)
        return test

    return mark


def not_worked(
    name: str, config: type[PluginConfig], common: type[PluginConfig], elsewhere: Iterable[str] = ()
) -> set[str]:
    """Settings of a plug-in without such a test. Those of `common` count as "common.X", whatever the plug-in."""
    fields = set(config.model_fields) - set(PluginConfig.model_fields) - set(elsewhere)
    wanted = {f"common.{field}" if field in common.model_fields else f"{name}.{field}" for field in fields}
    return wanted - _WORKED
