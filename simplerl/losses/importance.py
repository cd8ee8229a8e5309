"""Ratios of two policies on the same tokens, and weights that correct a loss for the policy that sampled them."""

from __future__ import annotations

import torch
from torch import Tensor

from simplerl.types import ImportanceMode


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """pi / pi_old of each token [R], from log-probs [R]. A token impossible under both (-inf) has ratio 1, not NaN."""
    both = torch.isneginf(logprobs) & torch.isneginf(old_logprobs)
    # Masked before exp: NaN x 0 is NaN, in the gradient too.
    return torch.where(both, 0.0, logprobs - old_logprobs).exp()


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, mode: ImportanceMode, limit: float) -> Tensor:
    """Weights [R] that correct a loss for tokens sampled from another policy, from pi / pi_sampled of each token.

    - `none`: 1.
    - `truncated`: the ratio, `limit` at most (V-trace, arXiv:1802.01561, eq. 1: rho).
    - `masked`: the ratio within [1 / limit, limit], else 0: such a token is not learned from (arXiv:2510.18855).
    """
    ratio = policy_ratio(logprobs, sampled_logprobs)
    if mode == "truncated":
        return ratio.clamp(max=limit)
    if mode == "masked":
        return torch.where((ratio >= 1 / limit) & (ratio <= limit), ratio, 0.0)
    return torch.ones_like(ratio)
