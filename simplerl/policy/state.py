"""What a checkpoint keeps of a learner: weights, optimiser moments, and the number of updates taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from simplerl.checkpoint import flatten_optimiser, restore_optimiser
from simplerl.errors import CheckpointError
from simplerl.policy.learner import Learner

Tensors = dict[str, dict[str, Tensor]]


def learner_state(learner: Learner) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by file, and JSON scalars."""
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    for name, optimiser in learner.optimisers.items():
        tensors[name] = _weights(optimiser.model)
        tensors[f"{name}_optimiser"], adamw = flatten_optimiser(optimiser.adamw)
        scalars[name] = {"updates": optimiser.updates, "adamw": adamw}
    return tensors, scalars


def restore_learner(learner: Learner, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> None:
    """The inverse of `learner_state`, exact. Raises `CheckpointError` when the models differ."""
    if set(scalars) != set(learner.optimisers):
        raise CheckpointError(f"the checkpoint holds {sorted(scalars)}, this run trains {sorted(learner.optimisers)}")
    for name, optimiser in learner.optimisers.items():
        _restore_weights(name, optimiser.model, tensors[name])
        restore_optimiser(optimiser.adamw, tensors[f"{name}_optimiser"], scalars[name]["adamw"])
        optimiser.updates = scalars[name]["updates"]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name; tied ones once. A base under adapters never changes, so it is not kept."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _restore_weights(name: str, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    own = _weights(model)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    found = {key: tuple(value.shape) for key, value in stored.items()}
    if shapes != found:
        odd = sorted(set(shapes.items()) ^ set(found.items()))[:3]
        raise CheckpointError(f"{name}: the checkpoint's tensors are not this model's, for example {odd}")
    for key, value in own.items():
        value.copy_(stored[key])
