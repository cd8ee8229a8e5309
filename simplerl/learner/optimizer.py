"""One model's optimiser: AdamW, a schedule that is a function of the update's number, and a finite-gradient guard."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from simplerl.config import OptimiserConfig
from simplerl.errors import DependencyError, NonFiniteError
from simplerl.types import Metrics


def learning_rate(config: OptimiserConfig, update: int, horizon: int) -> float:
    """The rate of update number `update` (from 0) of `horizon`: linear warm-up, cosine to the floor, then the floor."""
    warmup = math.ceil(config.warmup * horizon)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (update - warmup) / max(1, horizon - warmup))
    return config.learning_rate * (
        config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    )


class Optimiser:
    """AdamW over what of one model is trained. `updates` counts the steps taken; nothing else is state."""

    def __init__(self, name: str, model: nn.Module, config: OptimiserConfig, horizon: int) -> None:
        self.name = name
        self.model = model
        self.config = config
        self.horizon = horizon
        self.updates = 0
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        plain = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
        self.adamw: torch.optim.Optimizer
        if config.moments == "8-bit":
            self.adamw = _bitsandbytes(name).optim.AdamW8bit(groups, **settings)
        else:
            self.adamw = torch.optim.AdamW(groups, **settings, fused=True)

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
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.updates += 1

    def metrics(self, norm: Tensor) -> Metrics:
        rate = learning_rate(self.config, self.updates, self.horizon)
        return {f"{self.name}/grad_norm": norm.item(), f"{self.name}/lr": rate}


def _bitsandbytes(name: str) -> Any:
    # Without a package for 4-bit products, which nothing here needs, it would say so on every CPU with AVX-512.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise DependencyError(
            f"{name}.moments=8-bit needs bitsandbytes, which cannot be imported ({error}); pip install 'simplerl[8bit]'"
        ) from error
    return bitsandbytes


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
