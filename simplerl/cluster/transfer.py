"""Weights that learners send to engines themselves, by the engines' own weight transfer: NCCL, or CUDA IPC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simplerl.cluster import ray
from simplerl.cluster.ray import Actor
from simplerl.errors import InputLost, WorkerLost
from simplerl.types import Transfer

CHUNK, CHUNKS = 256 << 20, 2
"""Bytes of weights that are sent together, and how many such are on their way by NCCL."""


class DirectTransfer:
    """Stands for the learner's weights as they are whenever it sends them; it must be idle then, and the engines too.

    A process that is lost meanwhile costs the learner (`InputLost`): the others may wait for it for ever.
    """

    def __init__(self, ranks: Sequence[Actor], kind: Transfer, dtype: str, *, waits: bool) -> None:
        """`ipc` is for rank i and engine i on one GPU, `nccl` for GPUs of their own. Weights travel as `dtype`.

        `waits`: the learner keeps the weights it sent until engines have answered with them.
        """
        self._ranks, self._kind, self._dtype, self._waits = list(ranks), kind, dtype, waits
        self._met: list[Actor] = []
        self._shapes: dict[str, tuple[int, ...]] = ray.answer(ranks[0], ranks[0].call("run", "shapes"))

    def send(self, engines: Sequence[Actor], version: int) -> None:
        """Raises `EngineError` where the weights do not fit, `InputLost` where a process is lost."""
        try:
            self._send(list(engines), version)
        except InputLost:
            raise
        except WorkerLost as error:
            raise InputLost(f"the weights of version {version} did not arrive: {error}") from error

    def send_again(self, engine: Actor, version: int) -> None:
        """To one that was begun anew. Raises `InputLost` where the learner has moved on."""
        if not self._waits:
            raise InputLost(f"an engine was lost, and the learner has moved on from its weights of version {version}")
        self.send([engine], version)

    def _send(self, engines: list[Actor], version: int) -> None:
        everyone = [*self._ranks, *engines]
        if engines != self._met:
            self._met = []
            self._meet(engines, everyone)
            self._met = engines
        if self._kind == "ipc":
            ray.all_of(self._ranks, "free")  # the engines wake into that memory
        ray.all_of(engines, "begin_update", self._shapes)
        sending = [rank.call("send") for rank in self._ranks]
        if self._kind == "nccl":
            sending += [engine.call("receive_weights", described(self._shapes, self._dtype)) for engine in engines]
        ray.answers(everyone, sending)
        ray.all_of(engines, "finish_update", version)

    def _meet(self, engines: list[Actor], everyone: list[Actor]) -> None:
        """Forms the group of the ranks and these engines; all must come before any can leave."""
        how: dict[str, Any] = {"packed": True, "packed_buffer_size_bytes": self._room}
        told: list[Mapping[str, Any]] = [{"packed": True}] * len(engines)
        if self._kind == "nccl":
            how["packed_buffer_size_bytes"] = CHUNK
            host, port = ray.answer(self._ranks[0], self._ranks[0].call("address")).rsplit(":", 1)
            group = {"master_address": host, "master_port": int(port), "world_size": 1 + len(engines)}
            how |= group | {"packed_num_buffers": CHUNKS}
            told = [how | {"rank_offset": 1 + number} for number in range(len(engines))]
        meeting = [rank.call("init_transfer", self._kind, how, self._dtype, engines) for rank in self._ranks]
        meeting += [engine.call("init_transfer", each) for engine, each in zip(engines, told, strict=True)]
        ray.answers(everyone, meeting)

    @property
    def _room(self) -> int:
        """Bytes of IPC's only chunk, which every weight must fit into."""
        size = 2 if self._dtype == "bfloat16" else 4
        return max(CHUNK, *(math.prod(shape) * size for shape in self._shapes.values()))


def described(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """What vLLM's NCCL transfer is told of weights that come."""
    return {
        "names": list(shapes),
        "dtype_names": [dtype] * len(shapes),
        "shapes": [list(shape) for shape in shapes.values()],
    }
