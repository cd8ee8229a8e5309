"""Tensors of which every rank writes its part, as safetensors, by torch's distributed checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)  # it explains itself at length


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes this rank's parts of sharded tensors; what all ranks have is written once. Every rank takes part."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fills tensors, sharded over these ranks, from what any number of ranks wrote. Every rank takes part."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the whole tensors, by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(each.size) for name, each in known.items()}


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All of every tensor, in this process alone."""
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known: Any = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in known.items()}
    load(dict(tensors), storage_reader=reader, no_dist=True)
    return tensors
