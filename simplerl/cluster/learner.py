"""A learner sharded over ranks, each in a process of its own. The driver hands out batches and reads numbers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.ray import Actor, ObjectStoreWeights
from simplerl.cluster.transfer import DirectTransfer
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError
from simplerl.types import Metrics, Transfer


class RankWorker:
    """One rank."""

    sender: Any = None

    def __init__(self, rank: int, count: int, device: str, shares: bool = False, offload: bool = False) -> None:
        """`shares`: an engine is on the same GPU; `offload`: weights wait in the host's memory."""
        self.rank, self.count, self.device, self.shares, self.offload = rank, count, device, shares, offload

    def address(self) -> str:
        """Where the ranks can meet, on this one's node."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.own_address()}:{free.getsockname()[1]}"

    def join(self, address: str, make: Callable[[Any], Any]) -> None:
        """Meets the other ranks and builds the learner."""
        import torch
        import torch.distributed as dist

        from simplerl.learner.parallel import SingleProcess
        from simplerl.learner.sharded import Sharded

        if self.device == "cuda":
            torch.cuda.set_device(0)  # the only one that Ray lets this process see
        if self.count == 1 and not self.offload:
            self.learner = make(SingleProcess())
            return
        host, port = address.rsplit(":", 1)
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
        # Gradients that wait on the host have their norm summed there, which NCCL cannot.
        on_gpus = "cpu:gloo,cuda:nccl" if self.offload else "nccl"
        backend = on_gpus if self.device == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.count)
        self.learner = make(Sharded(torch.device(self.device), offload=self.offload))

    def run(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the learner. All ranks compute its result, the first returns it."""
        result = getattr(self.learner, method)(*arguments, **named)
        return result if self.rank == 0 else None

    def look(self, name: str) -> Any:
        return getattr(self.learner, name)

    def weights(self) -> list[Any]:
        """References to the weights in the cluster's store. One layer at a time is whole, in every rank."""
        try:
            if self.rank == 0:
                return ray.store(self.learner.weights())
            for _ in self.learner.weights():
                pass
            return []
        finally:
            if self.shares:
                self.free()

    def init_transfer(self, kind: Transfer, how: Mapping[str, Any], dtype: str, engines: Sequence[Actor]) -> None:
        """Meets the engines that it will send weights to, as `dtype`."""
        import torch

        from simplerl.engines._vllm_sender import Sender

        if self.sender is None:
            weights, shapes = self.learner.weights, self.learner.shapes()
            self.sender = Sender(weights, shapes, getattr(torch, dtype), self.rank)
        self.sender.init_transfer(
            kind, how, lambda what: ray.get([engine.call("receive_weights", what) for engine in engines])
        )

    def send(self) -> None:
        """Sends the weights to the engines met."""
        assert self.sender is not None
        self.sender.send()
        if self.shares:
            self.free()

    def free(self) -> None:
        """Gives what torch keeps for later back to the GPU: the engine there wakes next."""
        import torch

        torch.cuda.empty_cache()


class RemoteLearner:
    """A `Learner` whose work is done by ranks. A lost rank loses all of it: `WorkerLost`."""

    def __init__(
        self,
        make: Callable[[Any], Any],
        config: ClusterConfig,
        device: str,
        place: Placement,
        *,
        offload: bool = False,
        direct: Callable[[Sequence[Actor]], DirectTransfer] | None = None,
    ) -> None:
        """Begins `config.learners` ranks, each with what `make` gives for it; raises what that raises.

        With `offload` their weights wait in the host's memory; with `direct` they go to engines by themselves.
        """
        count = config.learners
        alike = (count, device, config.colocated, offload)
        ranks = [Actor(RankWorker, config, place.learner(rank), rank, *alike) for rank in range(count)]
        self._ranks = ray.begun(ranks)
        address = ray.answer(self._ranks[0], self._ranks[0].call("address"))
        ray.all_of(self._ranks, "join", address, make)
        self._direct = None if direct is None else direct(self._ranks)
        self.temperature: float = self._look("temperature")

    def score(self, batch: Any, *, own: bool = True) -> Any:
        return self._run("score", ray.put(batch), own=own)

    def logprobs(self, batch: Any) -> Any:
        return self._run("logprobs", ray.put(batch))

    def train(self, batch: Any, minibatches: Sequence[Any], loss: Any, **how: Any) -> list[Metrics]:
        """All optimiser steps of a batch in one message to each rank."""
        return self._run("train", ray.put(batch), ray.put(minibatches), loss, **how)

    def update(self, minibatch: Any, loss: Any, **how: Any) -> Metrics:
        return self.train(minibatch, [None], loss, **how)[0]

    def fill(self, batch: Any) -> Any:
        return self._run("fill", ray.put(batch))

    @property
    def updates(self) -> int:
        return self._look("updates")

    def weights(self, *, kept: bool = False) -> Any:
        """The policy's weights, in the cluster's store, where updates leave them as they are; or what sends those of
        now, unless they are to be kept."""
        if self._direct is not None and not kept:
            return self._direct
        return ObjectStoreWeights(ray.all_of(self._ranks, "weights")[0])

    def export(self, folder: Path) -> None:
        if not Path(folder).is_dir():
            raise ClusterError(f"{folder} is no folder here; the first learner's node must share it")
        self._run("export", folder)

    def save(self, folder: Path) -> dict[str, Any]:
        """Every rank writes its part into the folder, which all nodes of learners must share."""
        return self._run("save", Path(folder).absolute())

    def restore(self, folder: Path, scalars: Mapping[str, Any]) -> None:
        self._run("restore", Path(folder).absolute(), scalars)

    @property
    def stored_bytes(self) -> int:
        return self._look("stored_bytes")

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _run(self, method: str, *arguments: Any, **named: Any) -> Any:
        return ray.all_of(self._ranks, "run", method, *arguments, **named)[0]

    def _look(self, name: str) -> Any:
        return ray.answer(self._ranks[0], self._ranks[0].call("look", name))
