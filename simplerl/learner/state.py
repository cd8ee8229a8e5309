"""What a checkpoint keeps of a learner: weights, optimiser moments, and the number of updates taken."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simplerl.config import moment_bytes
from simplerl.errors import CheckpointError, ClusterError
from simplerl.storage.checkpoint import flatten_optimiser, restore_optimiser, shapes

if TYPE_CHECKING:
    from simplerl.learner.learner import LocalLearner
    from simplerl.learner.optimizer import Optimiser


def save_learner(learner: LocalLearner, folder: Path) -> dict[str, Any]:
    """Writes weights and moments into a checkpoint's folder and returns the rest as JSON. Every rank takes part."""
    if not folder.is_dir():
        raise ClusterError(f"{folder} is no folder on {socket.gethostname()}; the nodes of learners must share it")
    scalars: dict[str, Any] = {}
    for name, optimiser in learner.optimisers.items():
        moments, adamw = flatten_optimiser(optimiser.adamw)
        learner.parallel.save(_weights(optimiser.model), folder, name)
        learner.parallel.save(moments, folder, f"{name}_optimiser")
        scalars[name] = {"updates": optimiser.updates, "adamw": adamw}
    return scalars


def restore_learner(learner: LocalLearner, folder: Path, scalars: Mapping[str, Any]) -> None:
    """The inverse of `save_learner`, exact, of any number of ranks. Raises `CheckpointError` when the models differ."""
    if set(scalars) != set(learner.optimisers):
        raise CheckpointError(f"the checkpoint holds {sorted(scalars)}, this run trains {sorted(learner.optimisers)}")
    for name, optimiser in learner.optimisers.items():
        own = _weights(optimiser.model)
        _check_shapes(name, own, shapes(folder, name))
        for key, value in learner.parallel.load(folder, name, own).items():
            own[key].copy_(value)
        held = shapes(folder, f"{name}_optimiser")
        _check_moments(name, optimiser, held)
        parameters = [p.detach() for group in optimiser.adamw.param_groups for p in group["params"]]
        like = {
            key: parameters[int(key.partition(".")[0])] if shape else torch.zeros(()) for key, shape in held.items()
        }
        moments = learner.parallel.load(folder, f"{name}_optimiser", like)
        restore_optimiser(optimiser.adamw, moments, scalars[name]["adamw"])
        optimiser.updates = scalars[name]["updates"]


def checkpoint_bytes(learner: LocalLearner) -> int:
    """Bytes of what `save_learner` writes, all ranks together: weights and two moments."""
    return sum(
        weight.numel() * weight.element_size() + moment_bytes(weight.numel(), optimiser.config.moments)
        for optimiser in learner.optimisers.values()
        for weight in _weights(optimiser.model).values()
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name; tied ones once. A base under adapters never changes, so it is not kept."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _check_moments(name: str, optimiser: Optimiser, held: Mapping[str, Any]) -> None:
    stored = "8-bit" if any(key.endswith(".state1") for key in held) else "float32"
    if held and stored != optimiser.config.moments:
        raise CheckpointError(
            f"the checkpoint keeps {name}'s moments as {stored}, the recipe says {name}.moments="
            f"{optimiser.config.moments}; go on with {name}.moments={stored}"
        )


def _check_shapes(name: str, own: Mapping[str, Tensor], stored: Mapping[str, tuple[int, ...]]) -> None:
    needed = {key: tuple(value.shape) for key, value in own.items()}
    if needed != stored:
        odd = sorted(set(needed.items()) ^ set(stored.items()))[:3]
        raise CheckpointError(f"{name}: the checkpoint's tensors are not this model's, for example {odd}")
