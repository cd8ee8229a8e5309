"""The processes that train a model together, as the learner sees them: how many, along which dimension, and sums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simplerl.learner.base import Stats
from simplerl.storage.checkpoint import load_tensors, save_tensors


class ParallelDims(NamedTuple):
    """Ranks along each dimension of parallel training."""

    data: int = 1
    """Replicas of the sharded models, each with micro-batches of its own."""

    shard: int = 1
    """Ranks that the parameters of one replica are sharded over (FSDP2); each has micro-batches of its own too."""

    @property
    def world_size(self) -> int:
        """Ranks, and shares that micro-batches are dealt into."""
        return self.data * self.shard


class SingleProcess:
    """One process that holds every model whole and does all of the work."""

    dims = ParallelDims()
    rank = 0

    is_sharded = False
    """True if parameters are sharded; sharded models have no per-thread replicas."""

    weights_device: torch.device | None = None
    """Device that weights are stored on between uses. None: the device that computes."""

    def shard(self, model: nn.Module) -> None:
        """Leave each rank its shard of the model's parameters."""

    def sum_over_ranks(self, values: Tensor) -> None:
        """Replace `values`, in place and on every rank, by its sum over all ranks."""

    def reduce_stats(self, stats: Stats) -> Stats:
        """Statistics over all ranks: sums, and the maximum of names that end in /max."""
        return stats

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor that may be sharded. Every rank must call it."""
        return tensor

    def shard_like(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, sharded as `like` is. Every rank has the whole tensor."""
        return tensor

    def save(self, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
        """Write a set of tensors into a checkpoint's folder. Every rank must call it."""
        save_tensors(folder / f"{name}.safetensors", tensors)

    def load(self, folder: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read a set of tensors, each sharded as its namesake in `like`; any number of ranks may have saved it."""
        stored = load_tensors(folder, name)
        return {key: self.shard_like(stored[key], tensor) for key, tensor in like.items()}
