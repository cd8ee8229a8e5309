"""Losses over flat response tokens [R]. Each is a weighted sum; the weights carry the normalisation.

`token_weights` divides by counts of the *global* minibatch. Losses of its micro-batches, on any rank, are plain sums
and add up to the same number however the minibatch is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simplerl.losses.importance import policy_ratio
from simplerl.types import Aggregation, KLEstimator

BOUND = 0.1
"""Difference of log-probs, in nats, beyond which a token counts in `mismatch/beyond`."""


@dataclass(frozen=True, slots=True)
class GlobalCounts:
    """Sequences and response tokens of the global minibatch, over all micro-batches and ranks."""

    sequences: int
    tokens: int


def token_weights(
    lengths: Tensor, aggregation: Aggregation, counts: GlobalCounts, *, constant: int | None = None
) -> Tensor:
    """The weight of every response token in a loss [R], from the response `lengths` [n] of a micro-batch.

    - `sequence-mean`: mean over a response's tokens, then over responses: 1 / (l_i N) (OpenRLHF, the v0 recipe).
    - `token-mean`: mean over all tokens: 1 / sum(l) (DAPO, arXiv:2503.14476, eq. 8).
    - `constant`: 1 / (L N) with `constant` L, the response limit (Dr.GRPO, arXiv:2503.20783). None: 1.
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

    All tensors are flat [R]; `weights` come from `token_weights`.
    """
    ratio = policy_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return (weights * -torch.minimum(ratio * advantages, clipped * advantages)).sum()


def log_likelihood_loss(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """The policy gradient without a ratio, -sum(w A log pi) over [R]; with A = 1, the negative log-likelihood."""
    return -(weights * advantages * logprobs).sum()


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """1 for every token whose gradient the clip removes, else 0: float [R]."""
    ratio = policy_ratio(logprobs, old_logprobs)
    return (((ratio > 1 + clip_high) & (advantages > 0)) | ((ratio < 1 - clip_low) & (advantages < 0))).float()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float | None
) -> Tensor:
    """The critic's loss, 1/2 max((V - R)^2, (V_clipped - R)^2), with V_clipped within `clip` of the old value.

    All tensors are flat [R]. `clip` None: not clipped (arXiv:2006.05990 found that better).
    """
    squared = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        squared = torch.maximum(squared, (clipped - returns).square())
    return 0.5 * (weights * squared).sum()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator, old_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) at each token, in nats, estimated from the sampled token [R].

    With d = log pi - log pi_ref (http://joschu.net/blog/kl-approx.html): k1 = d; k2 = d^2 / 2; k3 = e^-d - 1 + d.
    As a *loss*, k1's gradient is zero in expectation, and k3's is that of the other direction, KL(ref || policy).
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
    """Log-prob differences on the same tokens: engine vs learner, and learner vs reference. None: no reference.

    Log-probs are flat [R], of a micro-batch. Statistics of a minibatch's micro-batches add up; of names that end in
    /max the largest counts. `mismatch/kl` estimates KL(sampled || old) by k3, `kl/reference` KL(old || ref) by k1.
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
