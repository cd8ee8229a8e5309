"""Models sharded over processes by FSDP2 (arXiv:2304.11277). Whatever a release of torch may break of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from simplerl.errors import ConfigError
from simplerl.learner.base import Stats
from simplerl.learner.models import decoder_layers
from simplerl.learner.parallel import ParallelDims, SingleProcess
from simplerl.storage import sharded as shards


class Sharded(SingleProcess):
    """The ranks of the default process group, which must exist: NCCL on GPUs, gloo on CPUs."""

    is_sharded = True

    def __init__(self, device: torch.device, *, offload: bool = False) -> None:
        """With `offload`, weights, gradients and optimiser state are stored on the host (pinned memory for a GPU)."""
        if not dist.is_initialized():
            raise ConfigError("a sharded learner needs torch.distributed.init_process_group first")
        self.device = device
        self.dims, self.rank = ParallelDims(shard=dist.get_world_size()), dist.get_rank()
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.dims.shard,), mesh_dim_names=("shard",))
        self.weights_device = torch.device("cpu") if offload else None
        self.policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()

    def shard(self, model: nn.Module) -> None:
        """Shard each decoder layer as a unit of its own; embeddings and head form the model's unit."""
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=self.mesh, offload_policy=self.policy)
        fully_shard(model, mesh=self.mesh, offload_policy=self.policy)

    def sum_over_ranks(self, values: Tensor) -> None:
        moved = values.to(self.device)  # NCCL reduces GPU tensors only
        dist.all_reduce(moved)
        values.copy_(moved)

    def reduce_stats(self, stats: Stats) -> Stats:
        for names, kind in (
            ([name for name in stats if not name.endswith("/max")], dist.ReduceOp.SUM),
            ([name for name in stats if name.endswith("/max")], dist.ReduceOp.MAX),
        ):
            if names:
                values = torch.stack([stats[name].detach().float() for name in names])
                dist.all_reduce(values, kind)
                stats |= dict(zip(names, values, strict=True))
        return stats

    def full_tensor(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        moved = tensor.to(self.device)  # offloaded shards are on the host
        assert isinstance(moved, DTensor)
        return moved.full_tensor()

    def shard_like(self, tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def save(self, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
        shards.write(tensors, folder / name)

    def load(self, folder: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not (folder / name).is_dir():
            return super().load(folder, name, like)
        tensors = {key: torch.empty_like(tensor) for key, tensor in like.items()}
        shards.read_into(tensors, folder / name)
        return tensors
