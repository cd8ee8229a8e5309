"""AdamW (arXiv:1711.05101), torch's fused one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from simplerl.learner.optimizers.base import AdamWConfig, TrainedParameter, decay_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Config(AdamWConfig):
    """Settings of AdamW with its state in float32: 8 bytes a weight."""

    name: Literal["adamw"] = "adamw"


def build(config: Config, parameters: Sequence[TrainedParameter]) -> list[Optimizer]:
    """AdamW over all parameters."""
    from torch.optim import AdamW

    groups = decay_groups(parameters, config.weight_decay)
    return [AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)]
