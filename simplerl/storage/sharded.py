"""Sharded tensors as safetensors, each rank writing its shards, by torch's distributed checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logging.getLogger("it logs at length").setLevel(logging.ERROR)  # it explains itself at length


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this rank's shards; a tensor that every rank holds is written once. Every rank must call it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read into tensors sharded over these ranks, whatever ranks wrote them. Every rank must call it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the full tensors, by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(each.size) for name, each in known.items()}


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Every full tensor, in this process alone."""
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known: Any = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in known.items()}
    load(dict(tensors), storage_reader=reader, no_dist=True)
    return tensors
