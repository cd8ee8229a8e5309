"""What an optimizer is: a module with a class `Config` and a function `build`.

`Config` extends `OptimizerConfig`, or `AdamWConfig` if AdamW updates some of the tensors. `build` has the signature of
`OptimizerPlugin`. A new optimizer is a new file in this folder, or your own file named by `actor.path`. Import torch
inside of functions: reading a recipe imports the file.

`simplerl.learner.optimizer` sets the learning rate, clips gradients and checks that they are finite.
`simplerl.learner.state` stores any optimizer state that consists of tensors and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from pydantic import Field

from simplerl import plugins
from simplerl.config import OptimizerConfig, TensorSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class AdamWConfig(OptimizerConfig):
    """Settings of AdamW (arXiv:1711.05101)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square. Default 0.9 and 0.95."""

    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square. Default 1e-8."""


class TrainedParameter(NamedTuple):
    """A parameter to optimize, with its name in the model."""

    name: str
    weight: nn.Parameter
    spec: TensorSpec


class OptimizerPlugin(Protocol):
    """The module of an optimizer."""

    def build(self, config: OptimizerConfig, parameters: Sequence[TrainedParameter]) -> Sequence[Optimizer]:
        """One or more torch optimizers that together hold every parameter exactly once.

        `config` is an instance of the module's `Config`. The learning rate of every group is set before each step.
        """
        ...


def load_plugin(config: OptimizerConfig) -> OptimizerPlugin:
    """The module that settings belong to."""
    return cast(OptimizerPlugin, plugins.load("optimizers", config.name, config.path))


def decay_groups(parameters: Sequence[TrainedParameter], weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups for torch: matrices decay, biases and norms do not."""
    matrices = [each.weight for each in parameters if len(each.spec.shape) > 1]
    vectors = [each.weight for each in parameters if len(each.spec.shape) <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
