"""The trainer protocol: what the run loop needs of reinforcement learning and of supervised fine-tuning."""

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
    """Records of one step. `rows` and `shown` are left empty by a trainer that samples no responses."""

    metrics: Metrics
    rows: Sequence[dict[str, Any]] = ()
    """Every response of the step, see `simplerl.storage.records.rollout_row`."""
    shown: GradedRollout | None = None
    """A response to show to the user."""


class AlgorithmState(Protocol):
    """The part of an algorithm that a checkpoint stores."""

    def state(self) -> dict[str, float]: ...

    def restore(self, state: dict[str, float]) -> None: ...


class Trainer(Protocol):
    """Takes training steps. A step depends on its number and on the state of learner and algorithm, nothing else."""

    @property
    def learner(self) -> Learner: ...

    @property
    def verifier(self) -> Verifier: ...

    @property
    def reward(self) -> Reward: ...

    @property
    def engine(self) -> Engine | None:
        """Engine for evaluations; it holds the learner's weights whenever one is due. None: no evaluations."""
        ...

    @property
    def algorithm(self) -> AlgorithmState: ...

    def step(self, step: int) -> StepResult:
        """Take step number `step`, counted from 1."""
        ...

    def validate(self) -> dict[str, Any] | None:
        """Compute the loss on the validation set, as a row of validation.jsonl. None: no validation set."""
        ...

    def save(self, folder: Path) -> None:
        """Write into a checkpoint's folder what neither the learner nor the algorithm saves."""
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def close(self) -> None:
        """Stop worker threads."""
        ...


class BuildTrainer(Protocol):
    """Loads the models of a run, in this process or, with a placement, in processes of a cluster."""

    def __call__(self, phase: Phase, placement: Placement | None = None) -> Trainer: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A run before its models are loaded."""

    steps: int
    columns: Columns
    """Metrics of a step to show to the user."""
    build: BuildTrainer


def evaluation_due(recipe: TrainingRecipe, steps_done: int, steps: int) -> bool:
    """True if the model is evaluated after `steps_done` steps: 0, every multiple of `eval.every`, and the last."""
    every = recipe.eval.every
    return every > 0 and (steps_done % every == 0 or steps_done == steps)
