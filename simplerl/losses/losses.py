"""Losses over flat response tokens [R]. Each is a weighted sum, and the weights carry the normalisation.

`token_weights` divides by counts of the *global* minibatch. A loss over any part of it, a micro-batch or a rank's
share, is then a plain sum, and the parts add up to the same number however they were cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from simplerl.losses.importance import policy_ratio

Aggregation = Literal["sequence-mean", "token-mean", "constant"]
KLEstimator = Literal["k1", "k2", "k3", "k3-unbiased"]


BOUND = 0.1
"""Difference of log-probs beyond which a token counts in `mismatch/beyond`."""


@dataclass(frozen=True, slots=True)
class GlobalCounts:
    """Counts over the global minibatch."""

    sequences: int
    tokens: int


def token_weights(
    lengths: Tensor, aggregation: Aggregation, counts: GlobalCounts, *, constant: int | None = None
) -> Tensor:
    """The weight of every response token in a loss: [R], from response `lengths` [n] of a part of the minibatch.

    - `sequence-mean`: mean over a response's tokens, then over responses: 1 / (l_i N) (OpenRLHF, the v0 recipe).
    - `token-mean`: mean over all tokens: 1 / sum(l) (DAPO, arXiv:2503.14476, eq. 8).
    - `constant`: 1 / (L N) with a constant L, the response limit (Dr.GRPO, arXiv:2503.20783).
    """
    per_row = {
        "sequence-mean": lambda: 1 / (lengths * counts.sequences),
        "token-mean": lambda: torch.full_like(lengths, 1 / counts.tokens, dtype=torch.float32),
        "constant": lambda: torch.full_like(lengths, 1 / ((constant or 1) * counts.sequences), dtype=torch.float32),
    }[aggregation]()
    return torch.repeat_interleave(per_row.float(), lengths)


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """PPO's clipped policy loss (arXiv:1707.06347, eq. 7), to minimise; clip_high > clip_low is DAPO's clip-higher.

    All tensors are flat [R]; `weights` comes from `token_weights`.
    """
    ratio = policy_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return (weights * -torch.minimum(ratio * advantages, clipped * advantages)).sum()


def log_likelihood_loss(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """The policy gradient without a ratio, -sum of w A log pi: with advantages of 1 the negative log-likelihood."""
    return -(weights * advantages * logprobs).sum()


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Which tokens the clip takes the gradient from: float [R]."""
    ratio = policy_ratio(logprobs, old_logprobs)
    return (((ratio > 1 + clip_high) & (advantages > 0)) | ((ratio < 1 - clip_low) & (advantages < 0))).float()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float | None
) -> Tensor:
    """The critic's loss, 1/2 max((V - R)^2, (V_clipped - R)^2), V_clipped within `clip` of the old value.

    All tensors are flat [R]. `clip` None: no clipping (arXiv:2006.05990 found none better).
    """
    squared = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        squared = torch.maximum(squared, (clipped - returns).square())
    return 0.5 * (weights * squared).sum()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator, old_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) of each token, estimated from the token sampled [R].

    With d = log pi - log pi_ref (http://joschu.net/blog/kl-approx.html): k1 = d; k2 = d^2 / 2; k3 = e^-d - 1 + d.
    As a *loss*, k1's gradient is zero in expectation and k3's is that of the reverse order KL(ref || policy).
    `k3-unbiased` is (pi / pi_old) k3 (DeepSeek-V3.2, arXiv:2512.02556, section 3.1), whose gradient, through the
    ratio too, is that of KL(policy || reference) itself, since E_old[(pi / pi_old) k3] = KL(pi || ref) for every pi.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    k3 = torch.expm1(-difference) + difference
    return policy_ratio(logprobs, old_logprobs) * k3 if estimator == "k3-unbiased" else k3


@torch.no_grad()
def difference_stats(old: Tensor, sampled: Tensor, reference: Tensor | None, counts: GlobalCounts) -> dict[str, Tensor]:
    """What engine and learner, and learner and reference, say differently of the same tokens.

    Log-probs are flat [R], of a part of a minibatch: sums over the minibatch's tokens add up over its parts, and of
    what ends in /max the largest counts.
    """
    difference = old - sampled
    stats = {
        "mismatch/mean": difference.abs().sum() / counts.tokens,
        "mismatch/max": difference.abs().max(),
        "mismatch/beyond": (difference.abs() > BOUND).sum() / counts.tokens,
        "mismatch/kl": (torch.expm1(difference) - difference).sum() / counts.tokens,
    }
    if reference is not None:
        stats["kl/reference"] = (old - reference).sum() / counts.tokens
    return stats
