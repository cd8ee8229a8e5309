"""Weight sync between processes: through Ray's object store, or from GPU to GPU by the engines' own weight transfer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from simplerl.cluster import ray
from simplerl.cluster.ray import Actor
from simplerl.errors import InputLost, WorkerLost
from simplerl.types import Transfer

if TYPE_CHECKING:
    from ray import ObjectRef
    from torch import Tensor

STORE_CHUNK = 256 << 20
"""Bytes of weights per object in Ray's store."""

CHUNK, CHUNKS = 256 << 20, 2
"""Bytes of weights per NCCL or IPC message, and NCCL messages in flight."""


@runtime_checkable
class ClusterWeights(Protocol):
    """The policy's weights, for engines in other processes. Iterating brings them to this process, by name."""

    needs_every_engine: bool
    """True if `send` fails as a whole when one engine is lost."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...

    def send(self, engines: Sequence[Actor], version: int) -> dict[int, WorkerLost]:
        """Load them into idle engines. Returns the engines lost meanwhile, by number.

        Raises `EngineError` if they do not fit, `InputLost` if the learner is lost or must restart.
        """
        ...

    def resend(self, engine: Actor, version: int) -> None:
        """Load them into an engine that was restarted. Raises `InputLost` if they no longer exist."""
        ...


class ObjectStoreWeights:
    """Weights in Ray's object store: a snapshot that later updates leave alone."""

    needs_every_engine = False

    def __init__(self, references: list[ObjectRef]) -> None:
        self.references = references

    @classmethod
    def put(cls, weights: Iterable[tuple[str, Tensor]]) -> ObjectStoreWeights:
        """Copy weights into the store, in chunks."""
        references, chunk, size = [], {}, 0
        for name, tensor in weights:
            chunk[name] = tensor.detach().cpu()
            size += tensor.numel() * tensor.element_size()
            if size >= STORE_CHUNK:
                references.append(ray.put(chunk))
                chunk, size = {}, 0
        return cls([*references, ray.put(chunk)] if chunk else references)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for reference in self.references:
            yield from ray.get(reference).items()

    def send(self, engines: Sequence[Actor], version: int) -> dict[int, WorkerLost]:
        lost: dict[int, WorkerLost] = {}
        loading = [engine.submit("load_weights", version, *self.references) for engine in engines]
        for number, (engine, reference) in enumerate(zip(engines, loading, strict=True)):
            try:
                ray.result_of(engine, reference)
            except InputLost:
                raise  # the learner is lost, not this engine
            except WorkerLost as error:
                lost[number] = error
        return lost

    def resend(self, engine: Actor, version: int) -> None:
        engine.call("load_weights", version, *self.references)


class DirectTransfer:
    """The learner's current weights, which its ranks send to engines by NCCL or CUDA IPC. Both must be idle then.

    A process lost meanwhile costs the learner too (`InputLost`): the other processes may wait for it forever.
    """

    needs_every_engine = True

    def __init__(self, ranks: Sequence[Actor], kind: Transfer, dtype: str, *, keeps_weights: bool) -> None:
        """`ipc`: rank i and engine i share a GPU. `nccl`: each process has a GPU. Weights travel as `dtype`.

        `keeps_weights`: the learner does not update before every engine has answered with the weights it sent.
        """
        self._ranks, self._kind, self._dtype, self._keeps_weights = list(ranks), kind, dtype, keeps_weights
        self._group: list[Actor] = []
        self._shapes: dict[str, tuple[int, ...]] = ranks[0].call("run", "shapes")

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(ObjectStoreWeights(ray.call_all(self._ranks, "weights")[0]))

    def send(self, engines: Sequence[Actor], version: int) -> dict[int, WorkerLost]:
        try:
            self._send(list(engines), version)
        except InputLost:
            raise
        except WorkerLost as error:
            raise InputLost(f"the weights of version {version} did not arrive: {error}") from error
        return {}

    def resend(self, engine: Actor, version: int) -> None:
        if not self._keeps_weights:
            raise InputLost(f"an engine was lost, and the learner has moved on from its weights of version {version}")
        self.send([engine], version)

    def _send(self, engines: list[Actor], version: int) -> None:
        everyone = [*self._ranks, *engines]
        if engines != self._group:
            self._group = []
            self._form_group(engines, everyone)
            self._group = engines
        if self._kind == "ipc":
            ray.call_all(self._ranks, "free_cached_memory")  # the engines wake into that memory
        ray.call_all(engines, "begin_update", self._shapes)
        sending = [rank.submit("send") for rank in self._ranks]
        if self._kind == "nccl":
            sending += [
                engine.submit("receive_weights", describe_weights(self._shapes, self._dtype)) for engine in engines
            ]
        ray.results_of(everyone, sending)
        ray.call_all(engines, "finish_update", version)

    def _form_group(self, engines: list[Actor], everyone: list[Actor]) -> None:
        """Form the transfer group of the ranks and these engines; every process must join before one can leave."""
        settings: dict[str, Any] = {"packed": True, "packed_buffer_size_bytes": self._ipc_buffer_bytes}
        of_engines: list[Mapping[str, Any]] = [{"packed": True}] * len(engines)
        if self._kind == "nccl":
            settings["packed_buffer_size_bytes"] = CHUNK
            host, port = self._ranks[0].call("address").rsplit(":", 1)
            group = {"master_address": host, "master_port": int(port), "world_size": 1 + len(engines)}
            settings |= group | {"packed_num_buffers": CHUNKS}
            of_engines = [settings | {"rank_offset": 1 + number} for number in range(len(engines))]
        joining = [rank.submit("init_transfer", self._kind, settings, self._dtype, engines) for rank in self._ranks]
        joining += [engine.submit("init_transfer", each) for engine, each in zip(engines, of_engines, strict=True)]
        ray.results_of(everyone, joining)

    @property
    def _ipc_buffer_bytes(self) -> int:
        """Bytes of IPC's only buffer, which must hold the largest weight."""
        size = 2 if self._dtype == "bfloat16" else 4
        return max(CHUNK, *(math.prod(shape) * size for shape in self._shapes.values()))


def describe_weights(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """The description of incoming weights that vLLM's NCCL transfer expects."""
    return {
        "names": list(shapes),
        "dtype_names": [dtype] * len(shapes),
        "shapes": [list(shape) for shape in shapes.values()],
    }
