"""Protocols of the learner's room: the loss that it is given, and the learner that a trainer sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from simplerl.batch.batch import Batch, ScoredBatch, TrainBatch
from simplerl.losses.losses import GlobalCounts
from simplerl.types import Metrics

Stats = dict[str, Tensor]
"""Statistics of a micro-batch. Over micro-batches and ranks they are summed; of names that end in /max the largest
counts."""

Weights = Iterable[tuple[str, Tensor]]
"""The policy's weights by their `transformers` names, tied ones once; under `model.lora` the adapters alone."""

Check = Callable[[Metrics], None]
"""Called with a minibatch's statistics before its update; what it raises refuses the update."""


class Loss(Protocol):
    """What the learner needs of an algorithm."""

    needs_critic: bool
    needs_reference: bool

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, Stats]: ...

    def value_loss(self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts) -> tuple[Tensor, Stats]: ...


class TokenUtilization(NamedTuple):
    """Micro-batches that a batch is split into, and the share of their token budget that holds tokens."""

    micro_batches: int
    share: float


class Learner(Protocol):
    """Scores batches and trains the models: in this process, as one rank of several, or in other processes."""

    @property
    def temperature(self) -> float:
        """Temperature of its log-probs."""
        ...

    @property
    def updates(self) -> int:
        """Optimiser steps taken, summed over the models."""
        ...

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes that `save` writes, all ranks together."""
        ...

    def score(self, batch: Batch, *, old_logprobs: bool = True) -> ScoredBatch:
        """Add the critic's values, the reference's log-probs and, if asked for, the policy's own.

        Without `old_logprobs` the batch must be trained on in a single update: its forward pass gives them.
        """
        ...

    def logprobs(self, batch: Batch) -> Tensor:
        """The policy's log-probs of the response tokens, float32 [R]."""
        ...

    def train(
        self,
        batch: TrainBatch,
        minibatches: Sequence[Tensor | None],
        loss: Loss,
        *,
        train_actor: bool = True,
        check: Check | None = None,
    ) -> list[Metrics]:
        """Take one optimiser step per minibatch, in order. A minibatch is its rows of the batch; None is every row.

        Raises `NonFiniteError`, and whatever `check` raises. A refused update and those after it change no weight.
        """
        ...

    def token_utilization(self, batch: Batch) -> TokenUtilization:
        """How well micro-batches use their token budget."""
        ...

    def weights(self, *, snapshot: bool = False) -> Weights:
        """The policy's weights for an engine. A snapshot is copied at once, so that later updates leave it alone."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights and optimiser state into a checkpoint's folder; return the rest as JSON."""
        ...

    def restore(self, folder: Path, scalars: Mapping[str, Any]) -> None:
        """Read what `save` wrote, exactly, from any number of ranks. Raises `CheckpointError` for other models."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy as an ordinary `transformers` folder, adapters merged."""
        ...

    def close(self) -> None:
        """Stop threads and processes."""
        ...


def merge_stats(stats: Stats, more: Stats) -> None:
    """Add a micro-batch's statistics to those before it."""
    for name, value in more.items():
        if name not in stats:
            stats[name] = value
        else:
            stats[name] = torch.maximum(stats[name], value) if name.endswith("/max") else stats[name] + value
