"""The trainer protocol: what a run repeats, whatever the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from simplerl.config import TrainingRecipe
from simplerl.engines.base import Engine
from simplerl.learner.base import Learner
from simplerl.rewards.base import Reward
from simplerl.train.console import Columns
from simplerl.types import GradedRollout, Metrics, Phase
from simplerl.verifiers.base import Verifier

if TYPE_CHECKING:
    from simplerl.cluster.placement import Placement


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step leaves for the records: numbers, and where responses were sampled their rows and one to show."""

    metrics: Metrics
    rows: Sequence[dict[str, Any]] = ()
    shown: GradedRollout | None = None


class State(Protocol):
    """What a checkpoint keeps of a loss."""

    def state(self) -> dict[str, float]: ...

    def restore(self, state: dict[str, float]) -> None: ...


class Trainer(Protocol):
    """One step after another, each a function of its number and of what the learner and the loss hold."""

    @property
    def learner(self) -> Learner: ...

    @property
    def verifier(self) -> Verifier: ...

    @property
    def reward(self) -> Reward: ...

    @property
    def engine(self) -> Engine | None:
        """Answers evaluations; holds the learner's weights whenever one is due. None where there is none to make."""
        ...

    @property
    def algorithm(self) -> State: ...

    def step(self, step: int) -> StepResult:
        """Step number `step`, from 1."""
        ...

    def validate(self) -> dict[str, Any] | None:
        """The loss on what is kept from training; None where nothing is."""
        ...

    def save(self, folder: Path) -> None:
        """Write into a checkpoint's folder what neither the learner nor the loss saves."""
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def close(self) -> None:
        """Stop threads that work beside the steps."""
        ...


class Build(Protocol):
    """Loads the models of a run, in this process or where `place` says."""

    def __call__(self, phase: Phase, place: Placement | None = None) -> Trainer: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A run before its models are loaded: how many steps, what to show of each, and how to begin."""

    steps: int
    columns: Columns
    build: Build


def evaluation_due(recipe: TrainingRecipe, done: int, steps: int) -> bool:
    """Whether the model is evaluated after so many steps: before the first, after every so many, after the last."""
    every = recipe.eval.every
    return every > 0 and (done % every == 0 or done == steps)
