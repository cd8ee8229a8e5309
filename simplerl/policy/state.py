"""What a checkpoint keeps of a learner: weights, optimiser moments, and the number of updates taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from simplerl.checkpoint import flatten_optimiser, restore_optimiser
from simplerl.errors import CheckpointError

if TYPE_CHECKING:
    from simplerl.policy.learner import Learner

Tensors = dict[str, dict[str, Tensor]]


def learner_state(learner: Learner) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by file, whole ones, and JSON scalars. Every rank takes part."""
    whole = learner.ranks.whole
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    for name, optimiser in learner.optimisers.items():
        tensors[name] = {key: whole(weight) for key, weight in _weights(optimiser.model).items()}
        moments, adamw = flatten_optimiser(optimiser.adamw)
        tensors[f"{name}_optimiser"] = {key: whole(moment) for key, moment in moments.items()}
        scalars[name] = {"updates": optimiser.updates, "adamw": adamw}
    return tensors, scalars


def restore_learner(learner: Learner, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> None:
    """The inverse of `learner_state`, exact. Raises `CheckpointError` when the models differ."""
    if set(scalars) != set(learner.optimisers):
        raise CheckpointError(f"the checkpoint holds {sorted(scalars)}, this run trains {sorted(learner.optimisers)}")
    for name, optimiser in learner.optimisers.items():
        _restore_weights(learner, name, optimiser.model, tensors[name])
        parameters = [p for group in optimiser.adamw.param_groups for p in group["params"]]
        moments = {
            key: learner.ranks.part(moment, parameters[int(key.partition(".")[0])]) if moment.ndim else moment
            for key, moment in tensors[f"{name}_optimiser"].items()
        }
        restore_optimiser(optimiser.adamw, moments, scalars[name]["adamw"])
        optimiser.updates = scalars[name]["updates"]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name; tied ones once. A base under adapters never changes, so it is not kept."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _restore_weights(learner: Learner, name: str, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    own = _weights(model)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    found = {key: tuple(value.shape) for key, value in stored.items()}
    if shapes != found:
        odd = sorted(set(shapes.items()) ^ set(found.items()))[:3]
        raise CheckpointError(f"{name}: the checkpoint's tensors are not this model's, for example {odd}")
    for key, value in own.items():
        value.copy_(learner.ranks.part(stored[key], value))
