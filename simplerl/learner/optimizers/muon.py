"""Muon for the matrices of decoder layers, AdamW for all other tensors.

An update of Muon is the momentum of the gradient, orthogonalized: U V^T of its singular value decomposition U S V^T,
approximated by Newton-Schulz iterations (https://kellerjordan.github.io/posts/muon/). Embeddings, heads, biases and
norms are not maps between hidden states and get AdamW, as the post recommends.

The update of an m x n matrix is scaled by 0.2 sqrt(max(m, n)) (arXiv:2502.16982). Its root mean square is then 0.2
learning rates, near that of AdamW in training, so both share a learning rate and values tuned for AdamW can be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from simplerl.config import TensorSpec
from simplerl.learner.optimizers.base import AdamWConfig, TrainedParameter, decay_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Config(AdamWConfig):
    """Settings of Muon; `betas` and `eps` are those of AdamW. Its state is 4 bytes a weight of the layers' matrices.

    The iterations run in bfloat16 and amplify rounding: another size of micro-batches or number of learners changes an
    update by up to 1 % on a tiny model. A resumed run is still bit-identical.
    """

    name: Literal["muon"] = "muon"

    supports_offload: ClassVar[bool] = False
    restriction: ClassVar[str] = "its matrix products would run on the host"

    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of the gradient. Default 0.95."""

    nesterov: bool = True
    """Orthogonalize the mean as it would be after one more of the same gradient. Default true."""

    ns_steps: int = Field(default=5, ge=1, lt=100)
    """Newton-Schulz iterations. Default 5, which bring singular values to between about 0.7 and 1.2."""

    def state_bytes(self, tensor: TensorSpec) -> int:
        """One float32 number a weight of a layer's matrix, two of every other tensor."""
        return 4 * tensor.numel if is_muons(tensor) else 8 * tensor.numel

    def workspace_bytes(self, tensor: TensorSpec, device: Literal["cpu", "cuda"]) -> int:
        """The update in float32, and in bfloat16 two copies of it and two products of its shorter side."""
        if not is_muons(tensor):
            return 0
        return (4 + 2 * 2) * tensor.numel + 2 * 2 * min(tensor.shape) ** 2


def is_muons(tensor: TensorSpec) -> bool:
    """True for tensors that Muon updates."""
    return tensor.in_layer and len(tensor.shape) == 2


def build(config: Config, parameters: Sequence[TrainedParameter]) -> list[Optimizer]:
    """Muon and AdamW, each with its share of the parameters."""
    from torch.optim import AdamW, Muon

    matrices = {"params": [each.weight for each in parameters if is_muons(each.spec)]}
    others = decay_groups([each for each in parameters if not is_muons(each.spec)], config.weight_decay)
    muon = Muon(
        [matrices],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, AdamW(others, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)]
