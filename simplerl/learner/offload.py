"""What autograd keeps for the backward pass, in the host's memory until then."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from simplerl.config import ModelConfig

SMALL = 1024
"""Bytes of a tensor that is not worth the way."""


def saved_activations(config: ModelConfig, device: torch.device) -> AbstractContextManager[Any]:
    """A block whose forward passes store activations on the host, if `model.offload` asks for it on a GPU."""
    if config.offloads_activations and device.type == "cuda":
        return on_host(pinned=True)
    return nullcontext()


def on_host(*, pinned: bool) -> AbstractContextManager[Any]:
    """What a forward pass in this block keeps is copied to the host, and comes back when a gradient needs it.

    Weights stay; with gradient checkpointing that leaves the layers' inputs. Copies wait for nothing but their stream.
    """

    def pack(tensor: Tensor) -> Tensor | tuple[Tensor, torch.device]:
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if weight or tensor.nbytes < SMALL:
            return tensor
        copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        return copy.copy_(tensor, non_blocking=pinned), tensor.device

    def unpack(kept: Tensor | tuple[Tensor, torch.device]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        copy, device = kept
        return copy.to(device, non_blocking=pinned)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
