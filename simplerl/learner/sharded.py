"""Models sharded over processes by FSDP2 (arXiv:2304.11277). All that a release of torch may break of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from simplerl.errors import ConfigError
from simplerl.learner.parallel import SingleProcess, Stats
from simplerl.storage import sharded as shards


class Sharded(SingleProcess):
    """The ranks of the process group, which must be there: NCCL on GPUs, gloo on CPUs."""

    sharded = True

    def __init__(self, device: torch.device, *, offload: bool = False) -> None:
        """With `offload` weights, gradients and moments wait in the host's memory, in pinned pages on a GPU."""
        if not dist.is_initialized():
            raise ConfigError("a sharded learner needs torch.distributed.init_process_group first")
        self.device = device
        self.count, self.number = dist.get_world_size(), dist.get_rank()
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.count,))
        self.home = torch.device("cpu") if offload else None
        self.policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()

    def shard(self, model: nn.Module) -> None:
        """Every decoder layer is gathered when it runs, what is outside of layers (embeddings, head) with the model."""
        for layer in layers_of(model):
            fully_shard(layer, mesh=self.mesh, offload_policy=self.policy)
        fully_shard(model, mesh=self.mesh, offload_policy=self.policy)

    def add(self, values: Tensor) -> None:
        moved = values.to(self.device)  # NCCL knows GPUs alone
        dist.all_reduce(moved)
        values.copy_(moved)

    def merge(self, stats: Stats) -> Stats:
        for names, kind in (
            ([name for name in stats if not name.endswith("/max")], dist.ReduceOp.SUM),
            ([name for name in stats if name.endswith("/max")], dist.ReduceOp.MAX),
        ):
            if names:
                values = torch.stack([stats[name].detach().float() for name in names])
                dist.all_reduce(values, kind)
                stats |= dict(zip(names, values, strict=True))
        return stats

    def whole(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        moved: Any = tensor.to(self.device)  # from the host, if it waits there
        return moved.full_tensor()

    def save(self, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
        shards.write(tensors, folder / name)

    def load(self, folder: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not (folder / name).is_dir():
            return super().load(folder, name, like)
        tensors = {key: torch.empty_like(tensor) for key, tensor in like.items()}
        shards.read_into(tensors, folder / name)
        return tensors

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that `transformers` says are not to be split."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]
