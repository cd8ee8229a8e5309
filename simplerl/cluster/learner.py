"""A learner sharded over ranks, each a Ray actor. The driver sends batches and reads numbers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from simplerl.batch.batch import Batch, ScoredBatch, TrainBatch
from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.ray import Actor
from simplerl.cluster.transfer import ClusterWeights, DirectTransfer, ObjectStoreWeights
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError
from simplerl.learner.base import Check, Loss, TokenUtilization
from simplerl.learner.parallel import SingleProcess
from simplerl.types import Metrics, Transfer

if TYPE_CHECKING:
    from ray import ObjectRef

    from simplerl.engines._vllm_sender import Sender
    from simplerl.learner.learner import LocalLearner

Make = Callable[[SingleProcess], "LocalLearner"]


class RankWorker:
    """One rank, in a process of its own."""

    learner: LocalLearner
    sender: Sender | None = None

    def __init__(
        self, rank: int, count: int, device: str, shares_gpu: bool = False, offloads_weights: bool = False
    ) -> None:
        """`shares_gpu`: an engine runs on the same GPU. `offloads_weights`: weights are stored on the host."""
        self.rank, self.count, self.device = rank, count, device
        self.shares_gpu, self.offloads_weights = shares_gpu, offloads_weights

    def address(self) -> str:
        """A free address on this rank's node, where the ranks can form their process group."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.own_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str, make: Make) -> None:
        """Join the process group and build the learner."""
        import torch
        import torch.distributed as dist

        from simplerl.learner.sharded import Sharded

        if self.device == "cuda":
            torch.cuda.set_device(0)  # Ray shows this process one GPU only
        if self.count == 1 and not self.offloads_weights:
            self.learner = make(SingleProcess())
            return
        host, port = address.rsplit(":", 1)
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
        # The norm of offloaded gradients is summed on the host, which NCCL cannot do.
        on_gpus = "cpu:gloo,cuda:nccl" if self.offloads_weights else "nccl"
        backend = on_gpus if self.device == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.count)
        self.learner = make(Sharded(torch.device(self.device), offload=self.offloads_weights))

    def run(self, method: str, *arguments: object, **named: object) -> object:
        """Call a method of the learner. Every rank computes its result; the first returns it."""
        result = getattr(self.learner, method)(*arguments, **named)
        return result if self.rank == 0 else None

    def attribute(self, name: str) -> object:
        """Read an attribute of the learner."""
        return getattr(self.learner, name)

    def weights(self) -> list[ObjectRef]:
        """References to the weights in the object store. Every rank gathers one layer at a time."""
        try:
            if self.rank == 0:
                return ObjectStoreWeights.put(self.learner.weights()).references
            for _ in self.learner.weights():
                pass
            return []
        finally:
            if self.shares_gpu:
                self.free_cached_memory()

    def init_transfer(self, kind: Transfer, settings: Mapping[str, Any], dtype: str, engines: Sequence[Actor]) -> None:
        """Join a transfer group with these engines; weights will travel as `dtype`."""
        import torch

        from simplerl.engines._vllm_sender import Sender

        if self.sender is None:
            weights, shapes = self.learner.weights, self.learner.shapes()
            self.sender = Sender(weights, shapes, getattr(torch, dtype), self.rank)
        self.sender.init_transfer(
            kind, settings, lambda handles: ray.get([engine.submit("receive_weights", handles) for engine in engines])
        )

    def send(self) -> None:
        """Send the current weights to the engines of the transfer group."""
        assert self.sender is not None
        self.sender.send()
        if self.shares_gpu:
            self.free_cached_memory()

    def free_cached_memory(self) -> None:
        """Return memory that torch caches to the GPU: the engine on it wakes next."""
        import torch

        torch.cuda.empty_cache()


class RemoteLearner:
    """A `Learner` whose work is done by ranks. Losing one rank loses the learner: `WorkerLost`."""

    def __init__(
        self,
        make: Make,
        config: ClusterConfig,
        device: str,
        placement: Placement,
        *,
        offloads_weights: bool = False,
        direct: Callable[[Sequence[Actor]], DirectTransfer] | None = None,
    ) -> None:
        """Start `config.learners` ranks, each with the learner that `make` builds; raises what `make` raises.

        `direct` makes the transfer by which ranks send weights to engines. None: through the object store.
        """
        count = config.learners
        settings = (count, device, config.colocated, offloads_weights)
        self._ranks = [
            Actor(RankWorker, config, placement.learner_options(rank), rank, *settings) for rank in range(count)
        ]
        ray.wait_until_started(self._ranks)
        ray.call_all(self._ranks, "join", self._ranks[0].call("address"), make)
        self._direct = None if direct is None else direct(self._ranks)
        self.temperature: float = self._attribute("temperature")

    def score(self, batch: Batch, *, old_logprobs: bool = True) -> ScoredBatch:
        return self._run("score", ray.put(batch), old_logprobs=old_logprobs)

    def logprobs(self, batch: Batch) -> Tensor:
        return self._run("logprobs", ray.put(batch))

    def train(
        self,
        batch: TrainBatch,
        minibatches: Sequence[Tensor | None],
        loss: Loss,
        *,
        train_actor: bool = True,
        check: Check | None = None,
    ) -> list[Metrics]:
        """See `Learner.train`. All optimiser steps of a batch are one message to each rank."""
        return self._run("train", ray.put(batch), ray.put(minibatches), loss, train_actor=train_actor, check=check)

    def token_utilization(self, batch: Batch) -> TokenUtilization:
        return self._run("token_utilization", ray.put(batch))

    @property
    def updates(self) -> int:
        return self._attribute("updates")

    @property
    def checkpoint_bytes(self) -> int:
        return self._attribute("checkpoint_bytes")

    def weights(self, *, snapshot: bool = False) -> ClusterWeights:
        """The policy's weights: in the object store, or without `snapshot` a transfer that sends the current ones."""
        if self._direct is not None and not snapshot:
            return self._direct
        return ObjectStoreWeights(ray.call_all(self._ranks, "weights")[0])

    def export(self, folder: Path) -> None:
        if not Path(folder).is_dir():
            raise ClusterError(
                f"{folder} does not exist on this machine; put --run-dir on storage that it shares with learners' nodes"
            )
        self._run("export", folder)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Learner.save`. Every rank writes its shards into the folder, which all learner nodes must share."""
        return self._run("save", Path(folder).absolute())

    def restore(self, folder: Path, scalars: Mapping[str, Any]) -> None:
        self._run("restore", Path(folder).absolute(), scalars)

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _run(self, method: str, *arguments: object, **named: object) -> Any:
        return ray.call_all(self._ranks, "run", method, *arguments, **named)[0]

    def _attribute(self, name: str) -> Any:
        return self._ranks[0].call("attribute", name)
