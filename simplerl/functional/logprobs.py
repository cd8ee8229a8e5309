"""Log-probabilities and entropy of given tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# 64 M float32 logits are 256 MiB; a vocabulary of 152 K gives chunks of 441 positions.
MAX_LOGITS = 1 << 26


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution, both float32 [R].

    `hidden` is [R, H], `weight` the head's [V, H], `targets` [R]. Logits are float32 whatever the model's type and
    divided by the sampling temperature. They are formed `max_logits` at a time and formed again in the backward
    pass, so memory does not grow with R x V.
    """
    size = max(1, max_logits // len(weight))
    chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
    if len(chunks) <= 1:
        return _chunk(hidden, weight, targets, temperature)
    parts = [checkpoint(_chunk, h, weight, t, temperature, use_reentrant=False) for h, t in chunks]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.float() @ weight.float().T / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
