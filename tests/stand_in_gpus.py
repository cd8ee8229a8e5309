"""Simulated GPUs for vLLM's weight transfer on a CPU: gloo replaces NCCL, and shared files replace CUDA IPC memory.

Only these primitives are simulated. All other code is vLLM's own, on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist


class Communicator:
    """Replaces vLLM's `PyNcclCommunicator`."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: Any) -> None:
        wait = timedelta(seconds=60)
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=wait)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, wait)
        self._store = store

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        self._group.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        self._group = None


class Torch:
    """torch, but GPU memory is a shared file."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*size: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        if device != "cuda":
            return torch.empty(*size, dtype=dtype, device=device)
        handle = os.memfd_create("gpu")  # goes away with this process
        os.truncate(handle, *size)
        path = f"/proc/{os.getpid()}/fd/{handle}"
        made = torch.from_file(path, shared=True, size=size[0], dtype=dtype)
        PATHS[made.data_ptr()] = path
        return made


PATHS: dict[int, str] = {}


def export(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
    """Replaces `reduce_tensor`: the seventh argument is the device's number."""
    return None, (PATHS[tensor.data_ptr()], tensor.numel(), None, None, None, None, -1)


def rebuild(path: str, size: int, *others: Any) -> torch.Tensor:
    assert others[-1] != -1, "the receiver names its own device"
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def stand_in(replace: Callable[[Any, str, Any], None] = setattr, uuid: str | None = None) -> None:
    """Give this process a simulated GPU, named `uuid`, for vLLM's weight transfer."""
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import ipc_engine, nccl_common, packed_tensor

    stream = SimpleNamespace(synchronize=lambda: None)
    replace(nccl_common, "stateless_init_process_group", Communicator)
    replace(packed_tensor, "_get_streams", lambda device, count: (stream,) * count)
    replace(packed_tensor, "torch", Torch())
    for module in (ipc_engine, packed_tensor):
        replace(module, "reduce_tensor", export)
    replace(reductions, "rebuild_cuda_tensor", rebuild)
    replace(torch.accelerator, "current_device_index", lambda: 0)
    replace(torch.accelerator, "synchronize", lambda: None)
    replace(torch.cuda, "current_stream", lambda: stream)
    replace(torch.cuda, "stream", lambda stream: nullcontext())
    replace(torch.cuda, "synchronize", lambda: None)
    replace(torch.cuda, "ipc_collect", lambda: None)
    replace(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))


def own_gpu() -> str:
    """Name of the simulated GPU that Ray gave this process."""
    import ray

    return f"{ray.get_runtime_context().get_node_id()}-{os.environ.get('CUDA_VISIBLE_DEVICES')}"
