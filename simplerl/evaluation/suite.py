"""What an evaluation asks: suites of benchmarks with their published settings, and the plan that one comes to.

A suite is a TOML file in `simplerl/evaluation/suites/`, or one's own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from simplerl.config import Frozen, explain
from simplerl.data.base import benchmark_module, benchmark_names
from simplerl.data.templates import PLAIN, render
from simplerl.errors import ConfigError
from simplerl.formatting import did_you_mean
from simplerl.verifiers.base import DEFAULT_VERIFIER

STOP = ("</s>", "<|im_end|>", "<|endoftext|>")


class Decoding(Frozen):
    """How responses are drawn; None leaves it to what stands above."""

    n: int | None = Field(default=None, ge=1)
    """Samples per problem."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)


class PartConfig(Decoding):
    """A benchmark under a name of its own, with its own settings."""

    benchmark: str


class Suite(Decoding):
    """Benchmarks with their template and decoding, and the benchmarks in the average."""

    description: str = ""
    template: str
    benchmarks: tuple[str, ...] = Field(min_length=1)
    average: tuple[str, ...] = ()
    trained: Decoding = Decoding()
    """What differs for trained models."""
    parts: Mapping[str, PartConfig] = {}


class Part(Frozen):
    """One line of the table: a benchmark and its settings."""

    name: str
    benchmark: str
    path: str | None = None
    """A user's own file."""
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 3000


class Plan(Frozen):
    """Everything that decides the responses of an evaluation; it is stored beside them."""

    model: str
    model_hash: str
    step: int | None = None
    """Of a training run's checkpoint."""
    suite: str | None = None
    trained: bool = False
    template: str
    engine: str = "embedded"
    verifier: str = DEFAULT_VERIFIER
    """Name of the verifier that judges the responses and tells which answers vote together."""
    verifier_settings: Mapping[str, Any] = {}
    """The verifier's settings that differ from their defaults, as in a recipe's `[verifier]` table."""
    seed: int = 0
    limit: int | None = None
    """Problems per benchmark at most."""
    stop: tuple[str, ...] = STOP
    parts: tuple[Part, ...]
    average: tuple[str, ...] = ()


def shipped_suites() -> dict[str, Path]:
    folder = Path(str(resources.files("simplerl.evaluation") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_suite(name: str) -> Suite:
    """A shipped suite, or a file that ends in .toml. Raises `ConfigError`."""
    shipped = shipped_suites()
    path = Path(name) if name.endswith(".toml") else shipped.get(name)
    if path is None or not path.exists():
        hint = did_you_mean(name, shipped)
        raise ConfigError(f"no suite {name!r}{hint} Available: {', '.join(shipped)}, or your own file ending in .toml")
    try:
        return Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"suite {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError(explain(error, Suite)) from None


def check_template(name: str) -> None:
    """Raises `DataError` with the names there are."""
    if name != "chat" and name not in PLAIN:
        render(name, "")


def parts_of(suite: Suite, wanted: tuple[str, ...], given: Decoding, *, trained: bool) -> tuple[Part, ...]:
    """The parts to run. What is given on the command line wins over a part's, the trained model's, the suite's."""
    return tuple(part(name, suite, given, trained=trained) for name in wanted or suite.benchmarks)


def part(name: str, suite: Suite, given: Decoding, *, trained: bool) -> Part:
    """One part; `name` is a part of the suite, a benchmark, or a path of a JSONL file."""
    own = suite.parts.get(name)
    layers: list[Decoding] = [suite, *([suite.trained] if trained else []), *([own] if own else []), given]
    settings: dict[str, Any] = {}
    for layer in layers:
        found = layer.model_dump(include=set(Decoding.model_fields), exclude_none=True)
        settings |= found
    if name.endswith((".jsonl", ".jsonl.gz")):
        return Part(name=Path(name).name.partition(".")[0], benchmark=name, path=name, **settings)
    benchmark = published_name(own.benchmark if own else name)
    return Part(name=name if own else benchmark, benchmark=benchmark, **settings)


def published_name(name: str) -> str:
    """`minerva_math`, also for `minerva-math`. Raises `ConfigError` with the names there are."""
    try:
        module = benchmark_module(name)
        return module.SET.name if hasattr(module, "SET") else name
    except ConfigError:
        known = benchmark_names()
        hint = did_you_mean(name.replace("-", "_"), known)
        raise ConfigError(
            f"no benchmark {name!r}{hint} Available: {', '.join(known)}, or a path of your JSONL"
        ) from None
