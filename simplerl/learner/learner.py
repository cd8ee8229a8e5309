"""The learner: models and optimizers. It is given batches and a loss, and knows neither rewards nor algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simplerl.batch.batch import Batch, ScoredBatch, TrainBatch, ragged_index
from simplerl.batch.layouts import Layout, Packed, Padded, Shared
from simplerl.config import Recipe, SFTRecipe
from simplerl.cpu import CPUThreads, thread_count
from simplerl.errors import NonFiniteError
from simplerl.learner.base import Check, Loss, Stats, TokenUtilization, merge_stats
from simplerl.learner.lora import adapter_weights, adapters_off, add_adapters, merged_weights
from simplerl.learner.models import PolicyModel, ValueModel, fused, load_causal_lm
from simplerl.learner.offload import saved_activations
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.learner.parallel import SingleProcess
from simplerl.learner.replicas import Replicas
from simplerl.learner.state import checkpoint_bytes, restore_models, save_models
from simplerl.losses.losses import GlobalCounts
from simplerl.types import Metrics


class MicroBatch(NamedTuple):
    """Rows of a batch that a model sees at once.

    `is_counted` is False for one that a rank repeats because others have more: FSDP needs as many passes of every rank.
    """

    rows: Tensor
    is_counted: bool


class LocalLearner:
    """The learner in this process: actor, and if the loss needs them critic and reference.

    With a `Sharded` parallel object it is one rank of several. Every rank gets the same calls with the same batches
    and returns the same results.
    """

    def __init__(
        self,
        recipe: Recipe | SFTRecipe,
        loss: Loss,
        horizon: int,
        device: torch.device,
        parallel: SingleProcess | None = None,
    ) -> None:
        """`horizon` is the number of optimizer steps that the learning-rate schedules span."""
        self.device = device
        self.parallel = parallel or SingleProcess()
        self.autocast = recipe.model.dtype == "bfloat16"
        self.token_budget = recipe.train.micro_batch_tokens
        self.temperature = recipe.logprob_temperature
        self.saved_activations = partial(saved_activations, recipe.model, device)
        weights_device = self.parallel.weights_device or device
        causal_lm = load_causal_lm(recipe.model).to(weights_device)
        self.fused = fused(causal_lm, recipe.model, device)
        packing = self.fused if recipe.train.packing is None else recipe.train.packing
        self.layout = (Shared if self.fused else Packed) if packing else Padded
        self.critic = ValueModel(deepcopy(causal_lm)).to(weights_device) if loss.needs_critic else None
        self.has_reference = loss.needs_reference
        # With adapters the reference is the same model with its adapters switched off.
        copied = loss.needs_reference and recipe.model.lora is None
        self.reference = PolicyModel(deepcopy(causal_lm)).requires_grad_(False) if copied else None
        if recipe.model.lora is not None:
            add_adapters(causal_lm, recipe.model.lora)
        self.has_adapters = recipe.model.lora is not None
        self.actor = PolicyModel(causal_lm)
        for model in filter(None, (self.actor, self.critic, self.reference)):
            self.parallel.shard(model)
        threads = 1 if self.parallel.is_sharded else thread_count(device, recipe.train.cpu_threads)
        self.cpu_threads = CPUThreads(threads)
        self.actors = Replicas(self.actor, threads)
        self.critics = None if self.critic is None else Replicas(self.critic, threads)
        trained: dict[str, nn.Module | None] = {"actor": self.actor, "critic": self.critic}
        self.optimizers = {
            name: ModelOptimizer(name, model, recipe.optimizers[name], horizon)
            for name, model in trained.items()
            if model is not None
        }

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(self, batch: Batch, *, old_logprobs: bool = True) -> ScoredBatch:
        """See `Learner.score`."""
        return batch.extend(
            ScoredBatch,
            old_logprobs=self.logprobs(batch) if old_logprobs else None,
            ref_logprobs=self._ref_logprobs(batch) if self.has_reference else None,
            values=self._score(batch, self.critic) if self.critic else None,
        )

    def logprobs(self, batch: Batch) -> Tensor:
        """The policy's log-probs of the response tokens, float32 [R]."""
        return self._score(batch, lambda layout: self.actor(layout, self.temperature)[0])

    def _ref_logprobs(self, batch: Batch) -> Tensor:
        model = self.reference or self.actor
        with nullcontext() if self.reference else adapters_off(self.actor):
            return self._score(batch, lambda layout: model(layout, self.temperature)[0])

    def _score(self, batch: Batch, model: Callable[[Layout], Tensor]) -> Tensor:
        """A model's number for every response token [R]: computed in micro-batches, put back in order."""
        result = torch.zeros(int(batch.response_lengths.sum()))

        @torch.no_grad()
        def score(_: int, micro_batch: MicroBatch) -> None:
            with self._precision():
                scores = model(self.layout.lay_out(batch.select(micro_batch.rows).to(self.device)))
            if micro_batch.is_counted:
                result[ragged_index(batch.response_lengths, micro_batch.rows)] = scores.cpu()

        self.cpu_threads.map(score, self._micro_batches(batch))
        self.parallel.sum_over_ranks(result)
        return result

    # --- updating -------------------------------------------------------------------------------------------------

    def train(
        self,
        batch: TrainBatch,
        minibatches: Sequence[Tensor | None],
        loss: Loss,
        *,
        train_actor: bool = True,
        check: Check | None = None,
    ) -> list[Metrics]:
        """See `Learner.train`."""
        chosen = (batch if rows is None else batch.select(rows) for rows in minibatches)
        return [self.update(minibatch, loss, train_actor=train_actor, check=check) for minibatch in chosen]

    def update(
        self, minibatch: TrainBatch, loss: Loss, *, train_actor: bool = True, check: Check | None = None
    ) -> Metrics:
        """Take one optimizer step of actor and critic.

        Raises `NonFiniteError`, and whatever `check` raises, before any weight has changed.
        """
        try:
            metrics = self.backward(minibatch, loss, train_actor=train_actor)
            if check is not None:
                check(metrics)
            return metrics | self.optimizer_step(train_actor=train_actor)
        finally:
            self.zero_grad()

    def backward(self, minibatch: TrainBatch, loss: Loss, *, train_actor: bool) -> Metrics:
        """Compute a minibatch's gradients, leave them in the models, and return its statistics.

        Raises `NonFiniteError` for a loss that is NaN or Inf.
        """
        counts = GlobalCounts(len(minibatch), int(minibatch.response_lengths.sum()))

        def run(thread_index: int, micro_batch: MicroBatch) -> Stats:
            rows = minibatch.select(micro_batch.rows).to(self.device)
            layout, stats = self.layout.lay_out(rows), Stats()
            if self.critics is not None:
                with self._precision(), self.saved_activations():
                    values = self.critics[thread_index](layout)
                stats |= self._backward(micro_batch, *loss.value_loss(values, rows, counts))
            if train_actor:
                with self._precision(), self.saved_activations():
                    logprobs, entropy = self.actors[thread_index](layout, self.temperature)
                stats |= self._backward(micro_batch, *loss.policy_loss(logprobs, entropy, rows, counts))
            return stats

        stats: Stats = {}
        for own in self.cpu_threads.map(run, self._micro_batches(minibatch)):
            merge_stats(stats, own)
        for replicas in filter(None, (self.actors, self.critics)):
            replicas.gather_gradients()
        metrics = {name: value.item() for name, value in self.parallel.reduce_stats(stats).items()}
        for name, value in metrics.items():
            if name.startswith("loss/") and not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value}; the update was refused")
        return metrics

    def _backward(self, micro_batch: MicroBatch, loss: Tensor, stats: Stats) -> Stats:
        """Add a loss's gradients. FSDP averages gradients over ranks, which the factor undoes."""
        if micro_batch.is_counted:
            (loss * self.parallel.dims.world_size).backward()
            return stats
        (loss * 0).backward()  # other ranks wait for this one's part of every layer
        return {name: torch.full_like(x, -math.inf if name.endswith("/max") else 0) for name, x in stats.items()}

    def optimizer_step(self, *, train_actor: bool) -> Metrics:
        """Change the weights by the gradients. Checks all gradients first, so that a refused update changes nothing."""
        active = [o for name, o in self.optimizers.items() if train_actor or name != "actor"]
        metrics: Metrics = {}
        for optimizer in active:
            metrics |= optimizer.metrics(self.parallel.full_tensor(optimizer.clip_gradients()))
        for optimizer in active:
            optimizer.step()
        return metrics

    def zero_grad(self) -> None:
        """Free the gradients."""
        self.actor.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.zero_grad(set_to_none=True)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    @property
    def updates(self) -> int:
        """Optimizer steps taken, summed over the models."""
        return sum(optimizer.updates for optimizer in self.optimizers.values())

    # --- micro-batches --------------------------------------------------------------------------------------------

    def _split(self, batch: Batch) -> list[Tensor]:
        """Rows of each micro-batch: within the token budget, and small enough that every thread or rank gets one."""
        workers, tokens = self.cpu_threads.count * self.parallel.dims.world_size, self.layout.tokens(batch)
        split = self.layout.split(batch, self.token_budget)
        if workers == 1 or tokens > self.token_budget * workers:
            return split
        for slack in (1.02, 1.1, 1.25):
            split = self.layout.split(batch, min(self.token_budget, math.ceil(tokens * slack / workers)))
            if len(split) <= workers:
                break
        return split

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """This rank's micro-batches. Every rank gets as many: if one is missing, the last is repeated, uncounted."""
        split, ranks = self._split(batch), self.parallel.dims.world_size
        numbers = range(self.parallel.rank, -(-len(split) // ranks) * ranks, ranks)
        return [MicroBatch(split[min(n, len(split) - 1)], is_counted=n < len(split)) for n in numbers]

    def token_utilization(self, batch: Batch) -> TokenUtilization:
        """How well micro-batches of at most the token budget are used."""
        count = len(self.layout.split(batch, self.token_budget))
        return TokenUtilization(count, int(batch.lengths.sum()) / (self.token_budget * count))

    def close(self) -> None:
        """Stop the worker threads."""
        self.cpu_threads.close()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Learner.save`; every rank writes its shards."""
        return save_models(self.optimizers, self.parallel, folder)

    def restore(self, folder: Path, scalars: Mapping[str, Any]) -> None:
        """See `Learner.restore`."""
        restore_models(self.optimizers, self.parallel, folder, scalars)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes that `save` writes, all ranks together."""
        return checkpoint_bytes(self.optimizers)

    # --- weights --------------------------------------------------------------------------------------------------

    def weights(self, *, snapshot: bool = False) -> Iterator[tuple[str, Tensor]]:
        """See `Learner.weights`."""
        model, full_tensor = self.actor.causal_lm, self.parallel.full_tensor
        adapters = ((name, full_tensor(weight)) for name, weight in adapter_weights(model))
        weights = adapters if self.has_adapters else merged_weights(model, full_tensor)
        return iter([(name, weight.clone()) for name, weight in weights]) if snapshot else weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that `weights` yields without adapters, in the same order. Gathers nothing."""
        return {name: tuple(weight.shape) for name, weight in self.actor.causal_lm.named_parameters()}

    def add_end_token(self, end_id: int) -> None:
        """Add a token to the end tokens in the exported model's generation settings."""
        settings: Any = self.actor.causal_lm.generation_config
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list | tuple) else [known]
        settings.eos_token_id = ends if end_id in ends else [*ends, end_id]

    def export(self, folder: Path) -> None:
        """See `Learner.export`."""
        weights = dict(merged_weights(self.actor.causal_lm, self.parallel.full_tensor))
        if self.parallel.rank == 0:
            self.actor.causal_lm.save_pretrained(folder, state_dict=weights)
