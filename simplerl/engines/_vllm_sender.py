"""The learner's half of vLLM's weight transfer; the engine's is in `vllm.py`. The driver of a run conducts both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simplerl.engines._vllm import set_environment, torch_as_it_was
from simplerl.types import Transfer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Weights = Callable[[], Iterator[tuple[str, "Tensor"]]]


class Sender:
    """One rank of a learner. All ranks send, since a sharded weight is made whole by all; the first is heard."""

    def __init__(self, weights: Weights, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, rank: int) -> None:
        """`weights` gives all of them, whole, on the GPU, by the names and in the order of `shapes`.

        They travel as `dtype`.
        """
        self._source, self._rank = Source(weights, shapes, dtype), rank
        self._transfer: Any = None

    def init_transfer(
        self, kind: Transfer, init_info: Mapping[str, Any], hand: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Join a transfer group with these engines and leave the one before.

        NCCL engines call `init_transfer` concurrently, IPC engines before. `hand` passes IPC's handles to the engines'
        `receive_weights`; with NCCL the driver makes that call while this process sends.
        """
        set_environment()
        with torch_as_it_was():
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        if self._transfer is not None:
            self._transfer.shutdown()
        info = (NCCLTrainerInitInfo if kind == "nccl" else IPCTrainerInitInfo)(**init_info, rank=self._rank)
        client: Any = Client(hand if kind == "ipc" else lambda what: None)
        source: Any = self._source
        self._transfer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)

    def send(self) -> None:
        """Sends all weights as they are now; they may change once it returns."""
        self._transfer.send_weights()


class Source:
    """vLLM's `WeightSource`: what will be sent, and each time anew the weights."""

    def __init__(self, weights: Weights, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._weights, self._shapes, self._dtype = weights, shapes, dtype

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self._dtype, shape) for name, shape in self._shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.to(self._dtype)) for name, tensor in self._weights())


class Client:
    """vLLM's `VLLMWeightSyncClient`, which would conduct the engines; the driver does, since it sees what dies."""

    def __init__(self, hand: Callable[[Mapping[str, Any]], None]) -> None:
        self.update_weights = hand

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None: ...

    def shutdown_weight_transfer_engine(self) -> None: ...

    def start_weight_update(self) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...
