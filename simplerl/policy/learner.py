"""The learner: models and optimisers. It is handed batches and a loss, and knows neither rewards nor algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from simplerl.config import Recipe, SFTRecipe
from simplerl.errors import NonFiniteError
from simplerl.functional.batch import Batch, Credited, Scored, ragged_index
from simplerl.functional.layout import Layout, Packed, Padded, Shared
from simplerl.functional.losses import Totals
from simplerl.lanes import Lanes, lanes_of
from simplerl.policy.lora import add_adapters, merged_weights
from simplerl.policy.models import PolicyModel, ValueModel, fused, load_causal_lm
from simplerl.policy.optim import Optimiser
from simplerl.policy.replicas import Replicas
from simplerl.types import Metrics

Stats = dict[str, Tensor]


class Loss(Protocol):
    """What the learner needs of an algorithm."""

    needs_critic: bool
    needs_reference: bool

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, part: Credited, totals: Totals
    ) -> tuple[Tensor, Stats]: ...

    def value_loss(self, values: Tensor, part: Credited, totals: Totals) -> tuple[Tensor, Stats]: ...


class Fill(NamedTuple):
    """Micro-batches of a batch, and the share of their token budget that is filled."""

    parts: int
    share: float


class Learner:
    """Actor, and where the loss needs them critic and reference, on one device."""

    def __init__(self, recipe: Recipe | SFTRecipe, loss: Loss, horizon: int, device: torch.device) -> None:
        self.device = device
        self.autocast = recipe.model.dtype == "bfloat16"
        self.budget = recipe.train.micro_batch_tokens
        self.temperature = recipe.logprob_temperature
        causal_lm = load_causal_lm(recipe.model).to(device)
        self.fused = fused(causal_lm, recipe.model, device)
        packing = self.fused if recipe.train.packing is None else recipe.train.packing
        self.layout = (Shared if self.fused else Packed) if packing else Padded
        self.critic = ValueModel(deepcopy(causal_lm)).to(device) if loss.needs_critic else None
        self.reference = PolicyModel(deepcopy(causal_lm)).requires_grad_(False) if loss.needs_reference else None
        if recipe.model.lora is not None:
            add_adapters(causal_lm, recipe.model.lora)
        self.actor = PolicyModel(causal_lm)
        self.lanes = Lanes(lanes_of(device, recipe.train.lanes))
        self.actors = Replicas(self.actor, self.lanes.count)
        self.critics = None if self.critic is None else Replicas(self.critic, self.lanes.count)
        self._kept: tuple[Tensor, list[Tensor]] | None = None
        self.optimisers = {"actor": Optimiser("actor", self.actor, recipe.actor, horizon)}
        if self.critic is not None:
            assert isinstance(recipe, Recipe)
            self.optimisers["critic"] = Optimiser("critic", self.critic, recipe.critic, horizon)

    # --- scoring --------------------------------------------------------------------------------------------------

    def annotate(self, batch: Batch, *, own: bool = True) -> Scored:
        """The batch with the learner's own log-probs, if wanted, the reference's and the critic's values.

        Where they are not wanted, one update with all of the batch follows.
        """
        reference = self.reference
        return batch.extend(
            Scored,
            old_logprobs=self.logprobs(batch) if own else None,
            ref_logprobs=self._score(batch, lambda p: reference(p, self.temperature)[0]) if reference else None,
            values=self._values(batch, once=not own) if self.critic else None,
        )

    def _values(self, batch: Batch, *, once: bool) -> Tensor:
        """The critic's values. With one update to follow and a micro-batch for each lane at most, the forward pass is
        kept for it: no more memory than the update takes."""
        assert self.critic is not None and self.critics is not None
        critics, parts = self.critics, self._parts(batch)
        if not once or len(parts) > self.lanes.count:
            return self._score(batch, self.critic)

        def forward(lane: int, rows: Tensor) -> Tensor:
            return self._critic_values(critics[lane], self.layout.lay_out(batch.select(rows).to(self.device)))

        computed = self.lanes.map(forward, parts)
        values = torch.zeros(int(batch.response_lengths.sum()))
        for rows, part in zip(parts, computed, strict=True):
            values[ragged_index(batch.response_lengths, rows)] = part.detach().cpu()
        self._kept = values, computed
        return values

    def logprobs(self, batch: Batch) -> Tensor:
        """The policy's log-probs of the response tokens, float32 [R]."""
        return self._score(batch, lambda layout: self.actor(layout, self.temperature)[0])

    def _score(self, batch: Batch, model: Callable[[Layout], Tensor]) -> Tensor:
        """A model's number for every response token [R], computed in micro-batches and put back in order."""
        result = torch.zeros(int(batch.response_lengths.sum()))

        @torch.no_grad()
        def score(lane: int, rows: Tensor) -> None:
            with self._precision():
                scores = model(self.layout.lay_out(batch.select(rows).to(self.device)))
            result[ragged_index(batch.response_lengths, rows)] = scores.cpu()

        self.lanes.map(score, self._parts(batch))
        return result

    # --- updating -------------------------------------------------------------------------------------------------

    def update(
        self,
        minibatch: Credited,
        loss: Loss,
        *,
        train_actor: bool = True,
        check: Callable[[Metrics], None] = lambda metrics: None,
    ) -> Metrics:
        """One optimiser step of actor and critic.

        Raises `NonFiniteError`, and whatever `check` raises of the statistics, before any weight has moved.
        """
        totals = Totals(len(minibatch), int(minibatch.response_lengths.sum()))
        scored, kept = self._kept or (None, None)
        self._kept = None
        if minibatch.values is not scored:
            kept = None

        def backward(lane: int, numbered: tuple[int, Tensor]) -> Stats:
            number, rows = numbered
            part = minibatch.select(rows).to(self.device)
            layout, stats = self.layout.lay_out(part), Stats()
            if self.critics is not None:
                values = kept[number] if kept else self._critic_values(self.critics[lane], layout)
                stats |= self._backward_critic(values, part, totals, loss)
            if train_actor:
                stats |= self._backward_actor(lane, layout, part, totals, loss)
            return stats

        stats: Stats = {}
        for part in self.lanes.map(backward, list(enumerate(self._parts(minibatch)))):
            merge(stats, part)
        return self._apply(stats, train_actor, check)

    def _backward_actor(self, lane: int, layout: Layout, part: Credited, totals: Totals, loss: Loss) -> Stats:
        with self._precision():
            logprobs, entropy = self.actors[lane](layout, self.temperature)
        value, stats = loss.policy_loss(logprobs, entropy, part, totals)
        value.backward()
        return stats

    def _critic_values(self, critic: nn.Module, layout: Layout) -> Tensor:
        with self._precision():
            return critic(layout)

    def _backward_critic(self, values: Tensor, part: Credited, totals: Totals, loss: Loss) -> Stats:
        value, stats = loss.value_loss(values, part, totals)
        value.backward()
        return stats

    def _apply(self, stats: Stats, train_actor: bool, check: Callable[[Metrics], None]) -> Metrics:
        """Checks every loss and gradient first and only then steps, so a refused update changes nothing."""
        for replicas in filter(None, (self.actors, self.critics)):
            replicas.gather()
        metrics = {name: value.item() for name, value in stats.items()}
        active = [o for name, o in self.optimisers.items() if train_actor or name != "actor"]
        try:
            for name, value in metrics.items():
                if name.startswith("loss/") and not math.isfinite(value):
                    raise NonFiniteError(f"{name} is {value}; the update was refused")
            check(metrics)
            for optimiser in active:
                metrics |= optimiser.metrics(optimiser.clip_gradients())
            for optimiser in active:
                optimiser.step()
        finally:
            self.actor.zero_grad(set_to_none=True)
            if self.critic is not None:
                self.critic.zero_grad(set_to_none=True)
        return metrics

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    @property
    def updates(self) -> int:
        """Optimiser steps taken by all models together."""
        return sum(optimiser.updates for optimiser in self.optimisers.values())

    def _parts(self, batch: Batch) -> list[Tensor]:
        """Micro-batches: within the budget, and small enough that every lane has its share of a small batch."""
        lanes, whole = self.lanes.count, self.layout.tokens(batch)
        parts = self.layout.split(batch, self.budget)
        if lanes == 1 or whole > self.budget * lanes:
            return parts
        for slack in (1.02, 1.1, 1.25):
            parts = self.layout.split(batch, min(self.budget, math.ceil(whole * slack / lanes)))
            if len(parts) <= lanes:
                break
        return parts

    def fill(self, batch: Batch) -> Fill:
        """Into how many parts a batch goes, and how full those are."""
        parts = self.layout.split(batch, self.budget)
        return Fill(len(parts), int(batch.lengths.sum()) / (self.budget * len(parts)))

    # --- weights --------------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights by their `transformers` names, tied ones once, adapters merged."""
        yield from merged_weights(self.actor.causal_lm)


def merge(stats: Stats, more: Stats) -> None:
    """Adds a part's statistics: sums add up, names that end in /max keep the largest."""
    for name, value in more.items():
        if name not in stats:
            stats[name] = value
        else:
            stats[name] = torch.maximum(stats[name], value) if name.endswith("/max") else stats[name] + value
