"""Learners and engines that sync weights by vLLM's own transfer, on simulated GPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_models as tiny
import torch
from learner_cases import rank_learner
from stand_in_gpus import own_gpu, stand_in

from simplerl.config import validate_recipe
from simplerl.learner.learner import LocalLearner
from simplerl.train.build import services
from simplerl.types import Request, Rollout

STUCK = "stuck"


class Receiver:
    """Makes any engine a `Receiver`, by vLLM's worker code. While the file `stuck` exists, receiving weights hangs."""

    def __init__(self, engine: Any, kind: str, stuck: Path | None = None) -> None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        stand_in(uuid=own_gpu())
        self._engine, self._stuck = engine, stuck
        alone = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        of: Any = None, SimpleNamespace(parallel_config=alone, model_config=None), torch.device("cpu"), self
        self._transfer: Any = (NCCLWeightTransferEngine if kind == "nccl" else IPCWeightTransferEngine)(*of)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._received: dict[str, torch.Tensor] = {}

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        return self._engine.submit(requests)

    def init_transfer(self, settings: Mapping[str, Any]) -> None:
        self._transfer.shutdown()
        self._transfer.init_transfer_engine(self._transfer.parse_init_info(settings))

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)

    def receive_weights(self, description: Mapping[str, Any]) -> None:
        if self._stuck is not None and self._stuck.exists():
            os.kill(os.getpid(), signal.SIGSTOP)
        self._transfer.update_weights(description)

    def finish_update(self, version: int) -> None:
        assert {name: tuple(tensor.shape) for name, tensor in self._received.items()} == self._shapes
        self._engine.load_weights(iter(self._received.items()), version)
        self._received = {}

    def load_weights(self, weights: Any, version: int | None = None) -> None:
        """See `Engine.load_weights`. Without a version: the method of a vLLM model that vLLM's worker calls."""
        if version is not None:
            self._engine.load_weights(weights, version)
            return
        self._received |= {name: tensor.clone() for name, tensor in weights}


def make_engine(folder: str, kind: str) -> Receiver:
    return Receiver(tiny.PacedEngine(folder, seconds=0.05), kind, Path(folder) / STUCK)


def make_learner(model: str, ranks: Any) -> LocalLearner:
    stand_in(uuid=own_gpu())
    return rank_learner(model, ranks)


def build_engine(recipe: Any, tokenizer: Any, device: torch.device) -> Receiver:
    """Build the embedded engine behind vLLM's worker code, for a recipe that names vLLM."""
    table = recipe.model_dump(mode="json", exclude_none=True)
    table |= {"engine": {"name": "embedded", "cpu_threads": 1}, "cluster": {}}
    return Receiver(services.build_engine(validate_recipe(table), tokenizer, device), recipe.transfer)


def build_learner(*arguments: Any) -> LocalLearner:
    stand_in(uuid=own_gpu())
    return services.build_learner(*arguments)
