"""The processes that train a model together, as the learner sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from simplerl.storage.checkpoint import load_tensors, save_tensors

Stats = dict[str, Tensor]


class SingleProcess:
    """One process that has all of every model and does all of the work."""

    count = 1
    number = 0
    sharded = False
    """True if parameters are sharded; sharded models have no per-thread replicas."""
    home: torch.device | None = None
    """Where weights wait, if not where they are used."""

    def shard(self, model: nn.Module) -> None:
        """Leaves each process a part of the model's parameters."""

    def add(self, values: Tensor) -> None:
        """Makes `values` in every process the sum over all, in place."""

    def merge(self, stats: Stats) -> Stats:
        """Statistics over all processes: sums, and the largest of names that end in /max."""
        return stats

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that may be sharded. Every process takes part."""
        return tensor

    def save(self, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
        """Writes a set of tensors into a checkpoint's folder. Every process takes part."""
        save_tensors(folder / f"{name}.safetensors", tensors)

    def load(self, folder: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint's set, each sharded as that of its name in `like`; any ranks may have saved."""
        stored = load_tensors(folder, name)
        return {key: self.part(stored[key], tensor) for key, tensor in like.items()}

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, sharded as `like` is. Every process has all of it."""
        return tensor
