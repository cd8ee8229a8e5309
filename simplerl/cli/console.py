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


def say_error(text: str) -> None:
    """One red block on stderr; plain where it is no terminal."""
    typer.secho(f"error: {text}", fg=typer.colors.RED, err=True)


def table(rows: list[tuple[str, ...]], indent: str = "") -> str:
    """Rows as aligned columns; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
    return "\n".join(indent + line for line in lines)
