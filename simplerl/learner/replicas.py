"""Replicas of a model for CPU threads: they share the weights in memory and have gradients of their own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn


class Replicas:
    """`count` modules that share a model's weights; the first is the model itself."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.models = [model, *(_twin(model) for _ in range(count - 1))]

    def __getitem__(self, thread_index: int) -> nn.Module:
        return self.models[thread_index]

    def gather_gradients(self) -> None:
        """Add every replica's gradients to the model's own, in the order of the threads, and free them."""
        for twin in self.models[1:]:
            for own, other in zip(self.models[0].parameters(), twin.parameters(), strict=True):
                if other.grad is not None:
                    own.grad = other.grad if own.grad is None else own.grad.add_(other.grad)
                    other.grad = None


def _twin(model: nn.Module) -> nn.Module:
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    return deepcopy(model, shared)
