"""`simplerl watch`: the report of a run while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simplerl.cli.console import say
from simplerl.errors import ConfigError


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder; the run may begin later.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Show how a run is learning while it trains, on this machine only, until Ctrl-C."""
    from simplerl.report.live import Server

    try:
        server = Server(run, port)
    except OSError as error:
        raise ConfigError(f"port {port} is not free ({error.strerror}); take another, or any with --port 0") from error
    with server:
        say(f"watching {run} at {server.url} (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped watching")
