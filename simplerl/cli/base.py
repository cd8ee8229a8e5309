"""`simplerl base`: the embedded base model from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simplerl.cli.console import say
from simplerl.errors import ConfigError

app = typer.Typer(help="Make the embedded base model.", no_args_is_help=True)


@app.callback()
def _group() -> None: ...


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="The new model's folder.")] = Path("tiny-math-base"),
    documents: Annotated[
        int | None, typer.Option(min=1, help="Documents of the corpus, and at most of its last part.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corpus, the initial weights and the order.")] = 0,
) -> None:
    """Generate the corpus, train the tokenizer and pre-train the model; the result is a `transformers` folder."""
    from simplerl.pretrain import BaseConfig, build_base

    if (out / "config.json").exists():
        raise ConfigError(f"{out} already holds a model; name another folder with --out")
    config = BaseConfig(seed=seed)
    if documents is not None:
        last = min(documents, config.anneal_documents)
        config = config.model_copy(update={"documents": documents, "anneal_documents": last})
    build_base(out, config, say)
    say(f"model: {out}")
