"""A learner's part of a checkpoint: weights, optimizer state, and the number of updates taken.

Optimizer state is stored by parameter and state key ("causal_lm.lm_head.weight.exp_avg"), whichever optimizer holds the
parameter.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplerl.errors import CheckpointError, ClusterError
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.learner.parallel import SingleProcess
from simplerl.storage.checkpoint import shapes


def save_models(optimizers: Mapping[str, ModelOptimizer], parallel: SingleProcess, folder: Path) -> dict[str, Any]:
    """Write weights and optimizer state into a checkpoint's folder, on every rank; return the rest as JSON."""
    if not folder.is_dir():
        raise ClusterError(f"{folder} is not a folder on {socket.gethostname()}; the nodes of learners must share it")
    scalars: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        tensors, rest = optimizer_state(optimizer)
        parallel.save(_weights(optimizer), folder, name)
        parallel.save(tensors, folder, f"{name}_optimizer")
        scalars[name] = {"updates": optimizer.updates, "optimizer": optimizer.config.name, **rest}
    return scalars


def restore_models(
    optimizers: Mapping[str, ModelOptimizer], parallel: SingleProcess, folder: Path, scalars: Mapping[str, Any]
) -> None:
    """Read what `save_models` wrote, exactly, from any number of ranks. Raises `CheckpointError` for other models."""
    if set(scalars) != set(optimizers):
        raise CheckpointError(f"the checkpoint holds {sorted(scalars)}, this run trains {sorted(optimizers)}")
    for name, optimizer in optimizers.items():
        own = _weights(optimizer)
        _check_weights(name, own, shapes(folder, name))
        for key, value in parallel.load(folder, name, own).items():
            own[key].copy_(value)
        _restore_optimizer(optimizer, parallel, folder, scalars[name])
        optimizer.updates = scalars[name]["updates"]


def checkpoint_bytes(optimizers: Mapping[str, ModelOptimizer]) -> int:
    """Size in bytes of everything that `save_models` writes, all ranks together."""
    return sum(
        each.weight.numel() * each.weight.element_size() + optimizer.config.state_bytes(each.spec)
        for optimizer in optimizers.values()
        for each in optimizer.parameters
    )


# --- optimizer state --------------------------------------------------------------------------------------------------


def optimizer_state(optimizer: ModelOptimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state's tensors, named "PARAMETER.KEY", and as JSON its `values`, named likewise, and parameter `groups`."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for part in optimizer.torch_optimizers:
        # bitsandbytes' own `state_dict` nests its tensors.
        state, names = torch.optim.Optimizer.state_dict(part), _names(optimizer, part)
        for number, entries in state["state"].items():
            for key, value in entries.items():
                (tensors if isinstance(value, Tensor) else values)[f"{names[number]}.{key}"] = value
        for group in state["param_groups"]:
            plain = {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
            groups.append(plain | {"params": [names[number] for number in group["params"]]})
    return tensors, {"values": values, "groups": groups}


def load_optimizer_state(optimizer: ModelOptimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` returned. Raises `CheckpointError` if the state belongs to other parameters.

    The next step is bit-identical as long as the state has its parameter's dtype, or the optimizer preserves another.
    """
    entries: dict[str, dict[str, Any]] = {}
    # torch adopts tensors that have the right dtype already: without a copy the next step would change the caller's.
    for name, value in [*((name, tensor.clone()) for name, tensor in tensors.items()), *rest["values"].items()]:
        entries.setdefault(_parameter(name), {})[name.rpartition(".")[2]] = value
    _check_state(optimizer, entries, [group["params"] for group in rest["groups"]])
    stored = iter(rest["groups"])
    for part in optimizer.torch_optimizers:
        own = part.state_dict()["param_groups"]
        groups = [_merged_group(now, group) for now, group in zip(own, islice(stored, len(own)), strict=True)]
        state = {number: entries[name] for number, name in enumerate(_names(optimizer, part)) if name in entries}
        part.load_state_dict({"state": state, "param_groups": groups})


def _merged_group(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored group with torch's numbers for its parameters, and tuples, which JSON turned into lists."""
    kept = {key: tuple(value) if isinstance(own.get(key), tuple) else value for key, value in stored.items()}
    return {**own, **kept, "params": own["params"]}


def _names(optimizer: ModelOptimizer, part: torch.optim.Optimizer) -> list[str]:
    """The parameters of a torch optimizer, in the order in which torch numbers them."""
    return [name for group in _named_groups(optimizer, part) for name in group]


def _named_groups(optimizer: ModelOptimizer, part: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(each.weight): each.name for each in optimizer.parameters}
    return [[names[id(weight)] for weight in group["params"]] for group in part.param_groups]


def _check_state(optimizer: ModelOptimizer, entries: Mapping[str, Mapping[str, Any]], groups: list[list[str]]) -> None:
    own = [group for part in optimizer.torch_optimizers for group in _named_groups(optimizer, part)]
    if own != groups or not entries.keys() <= {each.name for each in optimizer.parameters}:
        raise CheckpointError(
            f"{optimizer.name}: the stored optimizer state has groups of {[len(group) for group in groups]} "
            f"parameters, this model {[len(group) for group in own]}, or their names differ: another model?"
        )
    for each in optimizer.parameters:
        for key, value in entries.get(each.name, {}).items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            if shape and shape != optimizer.config.state_shape(key, each.spec.shape):
                raise CheckpointError(
                    f"optimizer state {each.name}.{key} has shape {list(shape)}, its parameter {list(each.spec.shape)}"
                )


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _restore_optimizer(
    optimizer: ModelOptimizer, parallel: SingleProcess, folder: Path, scalars: Mapping[str, Any]
) -> None:
    _check_plugin(optimizer, scalars.get("optimizer"))
    stored, weights = f"{optimizer.name}_optimizer", _weights(optimizer)
    like = {key: _like(weights.get(_parameter(key)), shape) for key, shape in shapes(folder, stored).items()}
    load_optimizer_state(optimizer, parallel.load(folder, stored, like), scalars)


def _parameter(key: str) -> str:
    """The parameter that a stored tensor or value belongs to."""
    return key.rpartition(".")[0]


def _like(weight: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A tensor sharded as the state of a weight is: like the weight if it has its shape, else not at all."""
    return torch.zeros(shape) if weight is None or tuple(weight.shape) != shape else weight


def _weights(optimizer: ModelOptimizer) -> dict[str, Tensor]:
    """Trained weights by name, tied ones once. A base under adapters never changes, so it is not stored."""
    return {each.name: each.weight.detach() for each in optimizer.parameters}


def _check_plugin(optimizer: ModelOptimizer, stored: str | None) -> None:
    key, own = f"{optimizer.name}.name", optimizer.config.name
    if stored is None:
        raise CheckpointError(f"the checkpoint names no optimizer of the {optimizer.name}: it was written before 0.2")
    if stored != own:
        raise CheckpointError(
            f"the checkpoint holds the state of {key}={stored}, the recipe says {key}={own}; "
            f"continue with {key}={stored}"
        )


def _check_weights(name: str, own: Mapping[str, Tensor], stored: Mapping[str, tuple[int, ...]]) -> None:
    needed = {key: tuple(value.shape) for key, value in own.items()}
    if needed != stored:
        odd = sorted(set(needed.items()) ^ set(stored.items()))[:3]
        raise CheckpointError(f"{name}: the checkpoint's tensors are not this model's, for example {odd}")
