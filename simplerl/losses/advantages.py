"""Advantages: from one reward per response to one number per response token."""

from __future__ import annotations

import torch
from torch import Tensor

from simplerl.batch.batch import from_padded, last_index, to_padded


def token_rewards(rewards: Tensor, lengths: Tensor, penalties: Tensor | None = None) -> Tensor:
    """Rewards per token [R]: each response's reward [N] on its last token, minus a penalty [R] on every token.

    `lengths` [N] are response tokens. `penalties` None: none.
    """
    result = rewards.new_zeros(int(lengths.sum())) if penalties is None else -penalties
    return result.index_add(0, last_index(lengths), rewards)


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float, lam: float | Tensor) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16): A_t = sum_k (gamma lam)^k delta_{t+k}.

    `rewards` and `values` are flat [R], `lengths` [N]; `lam` is one number or one per sequence [N]. The result is [R].
    Every response is an episode that ends: the state after its last token has value 0, truncated or not.
    """
    padded_rewards, padded_values = to_padded(rewards, lengths), to_padded(values, lengths)
    width = padded_rewards.shape[1]
    next_values = torch.cat([padded_values[:, 1:], padded_values.new_zeros(len(lengths), 1)], dim=1)
    # The padding to a row's right is zero in rewards and values, so its deltas are zero too.
    deltas = padded_rewards + gamma * next_values - padded_values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(lengths))
    for t in reversed(range(width)):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return from_padded(advantages, lengths)


def adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """VAPO's length-adaptive lambda (arXiv:2504.05118, eq. 9), 1 - 1 / (alpha l) and at least 0: [N].

    `lengths` [N] are response tokens. The paper has no lower bound; below l = 1 / alpha its lambda is negative.
    """
    return (1 - 1 / (alpha * lengths.float())).clamp_min(0)


def whiten(values: Tensor) -> Tensor:
    """Scale to mean 0 and (population) variance 1 over all elements, of any shape; equal values give exactly 0."""
    # A constant's float32 mean is off by rounding, which dividing by a tiny deviation would blow up.
    if values.numel() == 0 or bool(values.max() == values.min()):
        return torch.zeros_like(values)
    centred = values - values.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)


def group_advantages(rewards: Tensor, groups: Tensor, *, scale_by_std: bool = True) -> Tensor:
    """GRPO's advantages (arXiv:2402.03300, section 4.1), (r - mean) / (std + 1e-6) within each group: [N].

    `rewards` and `groups` are [N]; responses of one group have the same number. Without `scale_by_std`, r - mean
    (Dr.GRPO, arXiv:2503.20783). The standard deviation is that of a sample (n - 1), as in the released v1 code. A group
    of one, or of equal rewards, gets exactly 0.
    """
    advantages = torch.zeros_like(rewards)
    for group in groups.unique():
        rows = (groups == group).nonzero().squeeze(-1)
        own = rewards[rows]
        # In float32 the mean of seven 0.7s is off by 6e-8, which std + 1e-6 turns into an advantage of 0.06.
        if bool(own.max() == own.min()):
            continue
        centred = own - own.mean()
        advantages[rows] = centred / (own.std() + 1e-6) if scale_by_std else centred
    return advantages


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns), of [R] each; 0 if the returns do not vary."""
    variance = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / variance) if variance > 0 else 0.0
