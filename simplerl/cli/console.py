"""How the commands print: results on stdout, notices and errors on stderr, JSON on one line."""

from __future__ import annotations

from typing import Any

import orjson
import typer


def say(text: str = "") -> None:
    """A line of the result."""
    typer.echo(text)


def say_json(value: Any) -> None:
    """The result for a program."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode())


def say_note(text: str) -> None:
    """Something the user should read, beside the result."""
    typer.echo(text, err=True)


def say_error(text: str) -> None:
    """Print one red block on stderr; plain text if stderr is not a terminal."""
    typer.secho(f"error: {text}", fg=typer.colors.RED, err=True)
