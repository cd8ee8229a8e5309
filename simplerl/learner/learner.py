"""The learner: models and optimisers. It is handed batches and a loss, and knows neither rewards nor algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from simplerl.batch.batch import Batch, ScoredBatch, TrainBatch, ragged_index
from simplerl.batch.layouts import Layout, Packed, Padded, Shared
from simplerl.config import Recipe, SFTRecipe
from simplerl.cpu import CPUThreads, thread_count
from simplerl.errors import NonFiniteError
from simplerl.learner.lora import adapter_weights, adapters_off, add_adapters, merged_weights
from simplerl.learner.models import PolicyModel, ValueModel, fused, load_causal_lm
from simplerl.learner.offload import keeping
from simplerl.learner.optimizer import Optimiser
from simplerl.learner.parallel import SingleProcess, Stats
from simplerl.learner.replicas import Replicas
from simplerl.learner.state import restore_learner, save_learner, stored_bytes
from simplerl.losses.losses import GlobalCounts
from simplerl.types import Metrics


class Loss(Protocol):
    """What the learner needs of an algorithm."""

    needs_critic: bool
    needs_reference: bool

    def policy_loss(
        self, logprobs: Tensor, entropy: Tensor, micro_batch: TrainBatch, counts: GlobalCounts
    ) -> tuple[Tensor, Stats]: ...

    def value_loss(self, values: Tensor, micro_batch: TrainBatch, counts: GlobalCounts) -> tuple[Tensor, Stats]: ...


class TokenUtilization(NamedTuple):
    """Micro-batches of a batch, and the share of their token budget that is filled."""

    parts: int
    share: float


class MicroBatch(NamedTuple):
    """A micro-batch: its number, its rows, and whether it counts."""

    number: int
    rows: Tensor
    counts: bool


class Learner:
    """Actor, and where the loss needs them critic and reference, on one device or sharded over the ranks of several.

    Every rank is handed the same calls with the same batches, and returns the same.
    """

    def __init__(
        self,
        recipe: Recipe | SFTRecipe,
        loss: Loss,
        horizon: int,
        device: torch.device,
        ranks: SingleProcess | None = None,
    ) -> None:
        self.device = device
        self.ranks = ranks or SingleProcess()
        self.autocast = recipe.model.dtype == "bfloat16"
        self.budget = recipe.train.micro_batch_tokens
        self.temperature = recipe.logprob_temperature
        self.keeping = partial(keeping, recipe.model, device)
        home = self.ranks.home or device
        causal_lm = load_causal_lm(recipe.model).to(home)
        self.fused = fused(causal_lm, recipe.model, device)
        packing = self.fused if recipe.train.packing is None else recipe.train.packing
        self.layout = (Shared if self.fused else Packed) if packing else Padded
        self.critic = ValueModel(deepcopy(causal_lm)).to(home) if loss.needs_critic else None
        self.refers = loss.needs_reference
        # Under adapters the model itself is still there.
        copied = loss.needs_reference and recipe.model.lora is None
        self.reference = PolicyModel(deepcopy(causal_lm)).requires_grad_(False) if copied else None
        if recipe.model.lora is not None:
            add_adapters(causal_lm, recipe.model.lora)
        self.adapted = recipe.model.lora is not None
        self.actor = PolicyModel(causal_lm)
        for model in filter(None, (self.actor, self.critic, self.reference)):
            self.ranks.shard(model)
        self.cpu_threads = CPUThreads(thread_count(device, recipe.train.cpu_threads) if not self.ranks.sharded else 1)
        self.actors = Replicas(self.actor, self.cpu_threads.count)
        self.critics = None if self.critic is None else Replicas(self.critic, self.cpu_threads.count)
        self._kept: tuple[Tensor, list[Tensor]] | None = None
        self.optimisers = {"actor": Optimiser("actor", self.actor, recipe.actor, horizon)}
        if self.critic is not None:
            assert isinstance(recipe, Recipe)
            self.optimisers["critic"] = Optimiser("critic", self.critic, recipe.critic, horizon)

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(self, batch: Batch, *, own: bool = True) -> ScoredBatch:
        """The batch with the learner's own log-probs, if wanted, the reference's and the critic's values.

        Where they are not wanted, one update with all of the batch follows.
        """
        return batch.extend(
            ScoredBatch,
            old_logprobs=self.logprobs(batch) if own else None,
            ref_logprobs=self._ref_logprobs(batch) if self.refers else None,
            values=self._values(batch, once=not own) if self.critic else None,
        )

    def _values(self, batch: Batch, *, once: bool) -> Tensor:
        """The critic's values. With one update to follow and a micro-batch for each thread at most, the forward pass is
        kept for it: no more memory than the update takes."""
        assert self.critic is not None and self.critics is not None
        critics, parts = self.critics, self._parts(batch)
        if not once or len(parts) > self.cpu_threads.count or self.ranks.sharded:
            return self._score(batch, self.critic)

        def forward(thread_index: int, rows: Tensor) -> Tensor:
            return self._critic_values(critics[thread_index], self.layout.lay_out(batch.select(rows).to(self.device)))

        computed = self.cpu_threads.map(forward, parts)
        values = torch.zeros(int(batch.response_lengths.sum()))
        for rows, micro_batch in zip(parts, computed, strict=True):
            values[ragged_index(batch.response_lengths, rows)] = micro_batch.detach().cpu()
        self._kept = values, computed
        return values

    def logprobs(self, batch: Batch) -> Tensor:
        """The policy's log-probs of the response tokens, float32 [R]."""
        return self._score(batch, lambda layout: self.actor(layout, self.temperature)[0])

    def _ref_logprobs(self, batch: Batch) -> Tensor:
        model = self.reference or self.actor
        with nullcontext() if self.reference else adapters_off(self.actor):
            return self._score(batch, lambda layout: model(layout, self.temperature)[0])

    def _score(self, batch: Batch, model: Callable[[Layout], Tensor]) -> Tensor:
        """A model's number for every response token [R], computed in micro-batches and put back in order."""
        result = torch.zeros(int(batch.response_lengths.sum()))

        @torch.no_grad()
        def score(thread_index: int, share: MicroBatch) -> None:
            with self._precision():
                scores = model(self.layout.lay_out(batch.select(share.rows).to(self.device)))
            if share.counts:
                result[ragged_index(batch.response_lengths, share.rows)] = scores.cpu()

        self.cpu_threads.map(score, self._shares(batch))
        self.ranks.add(result)
        return result

    # --- updating -------------------------------------------------------------------------------------------------

    def train(self, batch: TrainBatch, minibatches: Sequence[Tensor | None], loss: Loss, **how: Any) -> list[Metrics]:
        """An optimiser step for each minibatch, one after the other, given by its rows of the batch; None is all of it.

        Takes and raises what `update` does; what was refused, and all after it, has moved nothing.
        """
        return [self.update(batch if rows is None else batch.select(rows), loss, **how) for rows in minibatches]

    def update(
        self,
        minibatch: TrainBatch,
        loss: Loss,
        *,
        train_actor: bool = True,
        check: Callable[[Metrics], None] = lambda metrics: None,
    ) -> Metrics:
        """One optimiser step of actor and critic.

        Raises `NonFiniteError`, and whatever `check` raises of the statistics, before any weight has moved.
        """
        try:
            metrics = self.backward(minibatch, loss, train_actor=train_actor)
            check(metrics)
            return metrics | self.apply(train_actor=train_actor)
        finally:
            self.forget()

    def backward(self, minibatch: TrainBatch, loss: Loss, *, train_actor: bool) -> Metrics:
        """The gradients of a minibatch, left with the models, its statistics. Raises `NonFiniteError` for a loss."""
        counts = GlobalCounts(len(minibatch), int(minibatch.response_lengths.sum()))
        scored, kept = self._kept or (None, None)
        self._kept = None
        if minibatch.values is not scored:
            kept = None

        def run(thread_index: int, share: MicroBatch) -> Stats:
            micro_batch = minibatch.select(share.rows).to(self.device)
            layout, stats = self.layout.lay_out(micro_batch), Stats()
            if self.critics is not None:
                values = kept[share.number] if kept else self._critic_values(self.critics[thread_index], layout)
                stats |= self._descend(share, *loss.value_loss(values, micro_batch, counts))
            if train_actor:
                with self._precision(), self.keeping():
                    logprobs, entropy = self.actors[thread_index](layout, self.temperature)
                stats |= self._descend(share, *loss.policy_loss(logprobs, entropy, micro_batch, counts))
            return stats

        stats: Stats = {}
        for micro_batch in self.cpu_threads.map(run, self._shares(minibatch)):
            merge(stats, micro_batch)
        for replicas in filter(None, (self.actors, self.critics)):
            replicas.gather()
        metrics = {name: value.item() for name, value in self.ranks.merge(stats).items()}
        for name, value in metrics.items():
            if name.startswith("loss/") and not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value}; the update was refused")
        return metrics

    def _descend(self, share: MicroBatch, value: Tensor, stats: Stats) -> Stats:
        """Adds a loss's gradients; FSDP takes their mean over the ranks, which is undone."""
        if share.counts:
            (value * self.ranks.count).backward()
            return stats
        (value * 0).backward()  # the other ranks wait for the layers of this one
        return {name: torch.full_like(x, -math.inf if name.endswith("/max") else 0) for name, x in stats.items()}

    def apply(self, *, train_actor: bool) -> Metrics:
        """Moves the weights by the gradients. Checks all of them first, so a refused update changes nothing."""
        active = [o for name, o in self.optimisers.items() if train_actor or name != "actor"]
        metrics: Metrics = {}
        for optimiser in active:
            metrics |= optimiser.metrics(self.ranks.whole(optimiser.clip_gradients()))
        for optimiser in active:
            optimiser.step()
        return metrics

    def forget(self) -> None:
        """Drops the gradients."""
        self.actor.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.zero_grad(set_to_none=True)

    def _critic_values(self, critic: nn.Module, layout: Layout) -> Tensor:
        with self._precision(), self.keeping():
            return critic(layout)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    @property
    def updates(self) -> int:
        """Optimiser steps taken by all models together."""
        return sum(optimiser.updates for optimiser in self.optimisers.values())

    def _parts(self, batch: Batch) -> list[Tensor]:
        """Micro-batches: within the budget, and small enough that every thread has its share of a small batch."""
        workers, whole = self.cpu_threads.count * self.ranks.count, self.layout.tokens(batch)
        parts = self.layout.split(batch, self.budget)
        if workers == 1 or whole > self.budget * workers:
            return parts
        for slack in (1.02, 1.1, 1.25):
            parts = self.layout.split(batch, min(self.budget, math.ceil(whole * slack / workers)))
            if len(parts) <= workers:
                break
        return parts

    def _shares(self, batch: Batch) -> list[MicroBatch]:
        """This rank's micro-batches. Ranks that have fewer run one that does not count: all must run equally many."""
        parts, ranks = self._parts(batch), self.ranks
        numbers = range(ranks.number, -(-len(parts) // ranks.count) * ranks.count, ranks.count)
        return [MicroBatch(n, parts[n], True) if n < len(parts) else MicroBatch(n, parts[-1], False) for n in numbers]

    def fill(self, batch: Batch) -> TokenUtilization:
        """Into how many parts a batch goes, and how full those are."""
        parts = self.layout.split(batch, self.budget)
        return TokenUtilization(len(parts), int(batch.lengths.sum()) / (self.budget * len(parts)))

    def close(self) -> None:
        """End the threads."""
        self.cpu_threads.close()

    # --- what is kept ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes weights and moments into a checkpoint's folder, each rank its own; returns the rest, as JSON."""
        return save_learner(self, folder)

    def restore(self, folder: Path, scalars: Mapping[str, Any]) -> None:
        """The inverse of `save`, exact, of any number of ranks. Raises `CheckpointError` when the models differ."""
        restore_learner(self, folder, scalars)

    @property
    def stored_bytes(self) -> int:
        """Bytes of what `save` writes, all ranks together."""
        return stored_bytes(self)

    # --- weights --------------------------------------------------------------------------------------------------

    def weights(self, *, kept: bool = False) -> Iterator[tuple[str, Tensor]]:
        """What an engine is handed: the policy's weights by their `transformers` names, tied ones once, or the adapters
        alone.

        With `kept` they are copies, made at once, that later updates leave as they are.
        """
        model, whole = self.actor.causal_lm, self.ranks.whole
        adapters = ((name, whole(weight)) for name, weight in adapter_weights(model))
        weights = adapters if self.adapted else merged_weights(model, whole)
        return iter([(name, weight.clone()) for name, weight in weights]) if kept else weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what `weights` gives without adapters, in its order; nothing is gathered."""
        return {name: tuple(weight.shape) for name, weight in self.actor.causal_lm.named_parameters()}

    def stop_at(self, end_id: int) -> None:
        """Lets the exported model's own settings name the token that its responses end with."""
        settings: Any = self.actor.causal_lm.generation_config
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list | tuple) else [known]
        settings.eos_token_id = ends if end_id in ends else [*ends, end_id]

    def export(self, folder: Path) -> None:
        """The policy as an ordinary `transformers` folder, adapters merged into its weights."""
        weights = dict(merged_weights(self.actor.causal_lm, self.ranks.whole))
        if self.ranks.number == 0:
            self.actor.causal_lm.save_pretrained(folder, state_dict=weights)


def merge(stats: Stats, more: Stats) -> None:
    """Adds a part's statistics: sums add up, names that end in /max keep the largest."""
    for name, value in more.items():
        if name not in stats:
            stats[name] = value
        else:
            stats[name] = torch.maximum(stats[name], value) if name.endswith("/max") else stats[name] + value
