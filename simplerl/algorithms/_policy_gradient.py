"""The policy loss of PPO and GRPO: clipped surrogate, KL and entropy terms, and their statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from simplerl.algorithms.base import AlgorithmConfig
from simplerl.batch.batch import TrainBatch
from simplerl.losses.importance import policy_ratio
from simplerl.losses.losses import (
    GlobalCounts,
    clip_fraction,
    clipped_surrogate,
    difference_stats,
    kl_estimate,
    token_weights,
)


def surrogate_loss(
    config: AlgorithmConfig,
    response_limit: int,
    logprobs: Tensor,
    entropy: Tensor,
    micro_batch: TrainBatch,
    counts: GlobalCounts,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate + kl_loss_coef x KL - entropy_coef x entropy of a micro-batch, and statistics.

    `logprobs` and `entropy` are [R], with gradient; `response_limit` is the longest response allowed, in tokens.
    """
    # Without old log-probs this is the step's only update: its own forward pass is the old policy, every ratio is 1.
    old = logprobs.detach() if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    weights = token_weights(micro_batch.response_lengths, config.aggregation, counts, constant=response_limit)
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    loss = clipped_surrogate(logprobs, old, micro_batch.advantages, weights, **clip)
    stats = ratio_stats(logprobs, old, micro_batch.advantages, counts, clip) | {"loss/policy": loss.detach()}
    if micro_batch.old_logprobs is None:
        stats |= difference_stats(old, micro_batch.sampled_logprobs, micro_batch.ref_logprobs, counts)
    stats["entropy"] = entropy.detach().sum() / counts.tokens
    if config.kl_loss_coef and micro_batch.ref_logprobs is not None:
        estimates = kl_estimate(logprobs, micro_batch.ref_logprobs, config.kl_loss_estimator, old)
        kl_loss = (weights * estimates).sum()
        stats["loss/kl"] = kl_loss.detach()
        loss = loss + config.kl_loss_coef * kl_loss
    if config.entropy_coef:
        loss = loss - config.entropy_coef * (weights * entropy).sum()
    return loss, stats


@torch.no_grad()
def ratio_stats(
    logprobs: Tensor, old: Tensor, advantages: Tensor, counts: GlobalCounts, clip: dict[str, float]
) -> dict[str, Tensor]:
    """Means over the minibatch's tokens, which add up over its micro-batches, and the largest |ratio - 1|."""
    difference = logprobs - old
    clipped = clip_fraction(logprobs, old, advantages, **clip)
    ratio = policy_ratio(logprobs, old)
    return {
        "ratio/mean": ratio.sum() / counts.tokens,
        "ratio/max": (ratio - 1).abs().max(),
        "ratio/clip_fraction": clipped.sum() / counts.tokens,
        "kl/old": (torch.expm1(difference) - difference).sum() / counts.tokens,
    }
