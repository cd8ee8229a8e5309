"""Settings that every optimizer has. The optimizers themselves are plug-ins, see `simplerl.learner.optimizers.base`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, SerializeAsAny

from simplerl.config.base import OPTIMIZER_PLUGINS, PluginConfig


class TensorSpec(NamedTuple):
    """What an optimizer's choice and memory depend on: a trained tensor's shape and its place in the model."""

    shape: tuple[int, ...]
    in_layer: bool
    """True inside a decoder layer; False for embeddings, heads and the last norm."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class OptimizerConfig(PluginConfig):
    """Learning rate, schedule, weight decay and clipping. The `Config` of an optimizer extends this."""

    supports_sharding: ClassVar[bool] = True
    """True if it can update the sharded parameters of several learners."""

    supports_offload: ClassVar[bool] = True
    """True if it can update weights that wait in the host's memory (`model.offload=weights` or `all`)."""

    restriction: ClassVar[str] = ""
    """Why it does not, for the error message."""

    learning_rate: float = Field(gt=0)
    """Peak of the schedule. Default 5e-7 for the actor, 9e-6 for the critic, 1e-5 in supervised fine-tuning."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices: an update shrinks them by learning rate x this. Biases and norms do not decay.
    Default 0."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up: a half cosine down to `min_lr_ratio` (default), or constant."""

    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the schedule's optimizer steps spent in linear warm-up. Default 0.03."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the learning rate. Default 0.1."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all of a model's tensors; a larger gradient is scaled down to it. Default 1."""

    def state_bytes(self, tensor: TensorSpec) -> int:
        """Bytes of the state of one tensor after its first update. By default two float32 numbers a weight."""
        return 8 * tensor.numel

    def workspace_bytes(self, tensor: TensorSpec, device: Literal["cpu", "cuda"]) -> int:
        """Peak extra bytes while one tensor is updated."""
        return 0

    def state_shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the state tensor `key` of a parameter of `shape`, unless it is a scalar. By default the same."""
        return shape


def _fill_in(learning_rate: float, value: object) -> object:
    """Adds what a recipe left out: AdamW at the default learning rate."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        return value
    defaults = {"learning_rate": learning_rate} | ({} if "path" in table else {"name": "adamw"})
    return {**defaults, **table}


# Validators run from right to left.
ActorField = Annotated[
    SerializeAsAny[OptimizerConfig], OPTIMIZER_PLUGINS["actor"], BeforeValidator(partial(_fill_in, 5e-7))
]
CriticField = Annotated[
    SerializeAsAny[OptimizerConfig], OPTIMIZER_PLUGINS["critic"], BeforeValidator(partial(_fill_in, 9e-6))
]
SFTActorField = Annotated[
    SerializeAsAny[OptimizerConfig], OPTIMIZER_PLUGINS["actor"], BeforeValidator(partial(_fill_in, 1e-5))
]
