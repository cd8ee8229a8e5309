"""The options of commands that judge responses: which verifier, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simplerl.errors import ConfigError

if TYPE_CHECKING:
    from simplerl.config import PluginConfig

VerifierName = Annotated[
    str | None,
    typer.Option("--verifier", help="Verifier, as `verifier.name` of a recipe: math (default), python-tests, ..."),
]
VerifierSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="verifier.KEY=VALUE", help="Set one setting of the verifier. Repeatable."),
]


def settings_from(overrides: Sequence[str] | None) -> dict[str, Any]:
    """The settings in `--set verifier.KEY=VALUE` options. Raises `ConfigError` for other keys."""
    from simplerl.config import apply_overrides

    for text in overrides or ():
        if not text.startswith("verifier.") or text.startswith("verifier.name="):
            raise ConfigError(f"--set {text!r}: only settings of the verifier are set here, as verifier.KEY=VALUE")
    return apply_overrides({"verifier": {}}, overrides or ())["verifier"]


def evaluation_verifier(name: str | None, overrides: Sequence[str] | None) -> PluginConfig:
    """The verifier that a command grades responses with."""
    from simplerl.verifiers.base import DEFAULT_VERIFIER, evaluation_config

    return evaluation_config(name or DEFAULT_VERIFIER, settings_from(overrides))
