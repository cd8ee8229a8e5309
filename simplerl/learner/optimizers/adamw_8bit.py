"""AdamW with its state in 8 bits (arXiv:2110.02861), through `bitsandbytes` (the extra `8bit`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from simplerl.config import TensorSpec
from simplerl.errors import DependencyError
from simplerl.learner.optimizers.base import AdamWConfig, TrainedParameter, decay_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer

BLOCK = 256
"""Numbers that share a scale."""
SMALLEST = 4096
"""Tensors of fewer numbers keep their state in float32."""


class Config(AdamWConfig):
    """Settings of AdamW in 8 bits: a quarter of the memory of float32.

    Both means are rounded, so curves differ a little from those of float32. Needs one learner.
    """

    name: Literal["adamw-8bit"] = "adamw-8bit"

    supports_sharding: ClassVar[bool] = False
    supports_offload: ClassVar[bool] = False
    restriction: ClassVar[str] = "bitsandbytes knows no sharded tensors"

    def state_bytes(self, tensor: TensorSpec) -> int:
        """Two codes of a byte a weight, and two float32 scales a block."""
        if tensor.numel < SMALLEST:
            return 8 * tensor.numel
        return 2 * tensor.numel + 2 * 4 * _blocks(tensor.numel)

    def workspace_bytes(self, tensor: TensorSpec, device: Literal["cpu", "cuda"]) -> int:
        """On a CPU codes become five float32 tensors; CUDA kernels never form them."""
        return 5 * 4 * tensor.numel if device == "cpu" else 0

    def state_shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Codes ("state1") have the parameter's shape, scales ("absmax1") one number a block, "qmap1" all 256 codes."""
        if key.startswith("absmax"):
            return (_blocks(TensorSpec(shape, in_layer=False).numel),)
        return (256,) if key.startswith("qmap") else shape


def _blocks(numel: int) -> int:
    return -(-numel // BLOCK)


def build(config: Config, parameters: Sequence[TrainedParameter]) -> list[Optimizer]:
    """AdamW over all parameters. Raises `DependencyError` without `bitsandbytes`."""
    # Without a package for 4-bit products, which nothing here needs, it logs a warning on every CPU with AVX-512.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise DependencyError(
            f"the optimizer adamw-8bit needs bitsandbytes, which cannot be imported ({error}); "
            "pip install 'simplerl[8bit]'"
        ) from error
    groups = decay_groups(parameters, config.weight_decay)
    return [AdamW8bit(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)]
