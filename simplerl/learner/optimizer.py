"""One model's optimizer: a plug-in, its learning-rate schedule, clipping, and a check that gradients are finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from simplerl.config import OptimizerConfig, TensorSpec
from simplerl.errors import ConfigError, NonFiniteError
from simplerl.learner.models import decoder_layers
from simplerl.learner.optimizers.base import TrainedParameter, load_plugin
from simplerl.types import Metrics


def learning_rate(config: OptimizerConfig, update: int, horizon: int) -> float:
    """Learning rate of update number `update` (from 0) of `horizon`: linear warm-up, half a cosine, then its floor."""
    warmup = math.ceil(config.warmup * horizon)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (update - warmup) / max(1, horizon - warmup))
    return config.learning_rate * (
        config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    )


class ModelOptimizer:
    """The optimizer of one model. Its state is the number of `updates` taken and that of the torch optimizers.

    Raises `ConfigError` if the plug-in leaves out a parameter or holds one twice.
    """

    def __init__(self, name: str, model: nn.Module, config: OptimizerConfig, horizon: int) -> None:
        self.name = name
        self.model = model
        self.config = config
        self.horizon = horizon
        self.updates = 0
        self.parameters = trained_parameters(model)
        self.torch_optimizers = load_plugin(config).build(config, self.parameters)
        groups = [group for optimizer in self.torch_optimizers for group in optimizer.param_groups]
        held = [id(weight) for group in groups for weight in group["params"]]
        if sorted(held) != sorted(id(each.weight) for each in self.parameters):
            raise ConfigError(
                f"{name}.name={config.name}: its optimizers hold {len(held)} parameters; each of the model's "
                f"{len(self.parameters)} must be in one of them, once"
            )

    def clip_gradients(self) -> Tensor:
        """Clip gradients to `max_grad_norm`; return the norm before. Raises `NonFiniteError`, which names a tensor."""
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not bool(torch.isfinite(norm)):
            # Clipped by a norm that is NaN, every gradient would be.
            raise NonFiniteError(f"{self.name}: gradient norm is {norm.item()}; {culprit(self.model)}")
        nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, norm)
        return norm

    def step(self) -> None:
        """Update every parameter at the schedule's learning rate."""
        rate = learning_rate(self.config, self.updates, self.horizon)
        for optimizer in self.torch_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.updates += 1

    def metrics(self, norm: Tensor) -> Metrics:
        """Gradient norm and learning rate of the next step."""
        rate = learning_rate(self.config, self.updates, self.horizon)
        return {f"{self.name}/grad_norm": norm.item(), f"{self.name}/lr": rate}


def trained_parameters(model: nn.Module) -> list[TrainedParameter]:
    """The parameters that require a gradient, in the model's order; tied ones once."""
    in_layers = {id(weight) for layer in decoder_layers(model) for weight in layer.parameters()}
    return [
        TrainedParameter(name, weight, TensorSpec(tuple(weight.shape), id(weight) in in_layers))
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]


def culprit(model: nn.Module) -> str:
    """The first tensor with a NaN or Inf, as a clause of an error message."""
    for name, parameter in model.named_parameters():
        for what, tensor in _tensors(parameter):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                return f"{bad} of {tensor.numel()} elements of the {what} of {name} are NaN or Inf"
    return "every single tensor is finite, their norm overflows"


def _tensors(parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    yield "weight", parameter.detach()
    if parameter.grad is not None:
        yield "gradient", parameter.grad
