"""The processes that train a model together, as the learner sees them."""

from __future__ import annotations

from torch import Tensor, nn

Stats = dict[str, Tensor]


class Alone:
    """One process that has all of every model and does all of the work."""

    count = 1
    number = 0
    sharded = False
    """Whether models are in parts; such a model has no twins in lanes."""

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

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, sharded as `like` is. Every process has all of it."""
        return tensor
