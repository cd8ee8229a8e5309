"""One model's optimizer: a plug-in, a schedule that is a function of the update's number, a finite-gradient guard."""

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
    """The rate of update number `update` (from 0) of `horizon`: linear warm-up, cosine to a floor, then the floor."""
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
    """Updates what of one model is trained. `updates` counts the steps taken; all else is the torch optimizers' state.

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
        """Clips to the configured norm; returns the norm before. Raises `NonFiniteError` naming the culprit."""
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not bool(torch.isfinite(norm)):
            # Clipped by a norm that is NaN, every gradient would be.
            raise NonFiniteError(f"{self.name}: gradient norm is {norm.item()}; {culprit(self.model)}")
        nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, norm)
        return norm

    def step(self) -> None:
        rate = learning_rate(self.config, self.updates, self.horizon)
        for optimizer in self.torch_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.updates += 1

    def metrics(self, norm: Tensor) -> Metrics:
        rate = learning_rate(self.config, self.updates, self.horizon)
        return {f"{self.name}/grad_norm": norm.item(), f"{self.name}/lr": rate}


def trained_parameters(model: nn.Module) -> list[TrainedParameter]:
    """The parameters that have a gradient, tied ones once, in the model's order."""
    in_layers = {id(weight) for layer in decoder_layers(model) for weight in layer.parameters()}
    return [
        TrainedParameter(name, weight, TensorSpec(tuple(weight.shape), id(weight) in in_layers))
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]


def culprit(model: nn.Module) -> str:
    """The first tensor with a NaN or Inf, in words."""
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
