"""The order in which problems are trained on: a pure function of the seed, with nothing to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from simplerl.errors import DataError
from simplerl.seeding import permutation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptStream(Generic[T]):
    """Endless shuffled passes over `items`.

    Batches run on across the end of a pass, so all items are used equally often.
    """

    items: Sequence[T]
    seed: int

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError("there are no prompts to draw from: every problem was dropped or filtered out")

    def take(self, step: int, count: int) -> list[T]:
        """The items of rollout batch `step` (0-based) when every batch takes `count`.

        A batch that spans two passes may hold an item twice.
        """
        if step < 0 or count < 1:
            raise ValueError(f"take(step={step}, count={count}): step must be >= 0 and count >= 1")
        size = len(self.items)
        first, last = step * count, (step + 1) * count - 1
        epochs = range(first // size, last // size + 1)
        orders = {epoch: permutation(size, self.seed, "shuffle", epoch) for epoch in epochs}
        return [self.items[orders[position // size][position % size]] for position in range(first, last + 1)]

    def extra(self, step: int, attempt: int, count: int) -> list[T]:
        """Fresh items beside batch `step`, for an algorithm that replaces some; drawn apart from the passes."""
        order = permutation(len(self.items), self.seed, "extra", step, attempt)
        return [self.items[order[i % len(order)]] for i in range(count)]
