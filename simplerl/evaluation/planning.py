"""From what a command or a stage asks for to the plan of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simplerl import plugins
from simplerl.evaluation.models import ModelUnderTest, model_hash
from simplerl.evaluation.suite import Decoding, Plan, check_template, load_suite, parts_of
from simplerl.storage.records import RunFolder
from simplerl.verifiers.base import DEFAULT_VERIFIER, evaluation_config


@dataclass(frozen=True)
class Asked:
    """Options of a command or stage. None: the suite decides."""

    suite: str | None = None
    benchmarks: tuple[str, ...] = ()
    template: str | None = None
    engine: str = "embedded"
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    trained: bool | None = None
    verifier: str = DEFAULT_VERIFIER
    verifier_settings: Mapping[str, Any] = field(default_factory=dict)


def names_in(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def suite_for(model: ModelUnderTest, asked: Asked) -> str:
    """The suite that was named; without a name the published one, or for the embedded base the miniature."""
    miniature = model.path == "tiny-math-base" or is_miniature(model)
    return asked.suite or ("arithmetic" if miniature else "simplerl-v0")


def is_miniature(model: ModelUnderTest) -> bool:
    """A run of the embedded base."""
    run = RunFolder(Path(model.name.partition("@")[0]))
    return run.exists and run.read_recipe().get("model", {}).get("path", "tiny-math-base") == "tiny-math-base"


def make_plan(model: ModelUnderTest, suite_name: str, asked: Asked) -> Plan:
    """The resolved plan. Weights of a training run are trained unless said otherwise."""
    plugins.load("engines", asked.engine)
    evaluation_config(asked.verifier, asked.verifier_settings)
    suite = load_suite(suite_name)
    template = asked.template or suite.template
    check_template(template)
    of_run = model.step is not None or RunFolder(Path(model.name)).exists
    trained = of_run if asked.trained is None else asked.trained
    return Plan(
        model=model.name,
        model_hash=model_hash(model),
        step=model.step,
        suite=suite_name,
        trained=trained,
        template=template,
        engine=asked.engine,
        verifier=asked.verifier,
        verifier_settings=asked.verifier_settings,
        seed=asked.seed,
        limit=asked.limit,
        parts=parts_of(suite, asked.benchmarks, Decoding(**asked.decoding), trained=trained),
        average=() if asked.benchmarks else suite.average,
    )
