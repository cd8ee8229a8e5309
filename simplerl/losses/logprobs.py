"""Log-probs and entropy of given tokens, without holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplerl.losses.sizes import MAX_LOGITS


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution, both float32 [R].

    `hidden` is [R, H], `weight` the head's [V, H], `targets` [R] int64. Logits are float32 for every model dtype, and
    divided by the sampling temperature. They are computed `max_logits` at a time and recomputed in the backward pass,
    so memory does not grow with R x V.
    """
    size = max(1, max_logits // len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        if len(hidden) <= size:
            return _chunk(hidden, weight, targets, temperature)
        return _Chunked.apply(hidden, weight, targets, temperature, size)


class _Chunked(torch.autograd.Function):
    """`_chunk` of `size` positions at a time. At most two tensors of a chunk's logits exist at once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, size: int
    ) -> tuple[Tensor, Tensor]:
        head = weight.float()
        logprobs, entropy, totals = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3))
        for rows in _chunks(len(hidden), size):
            logits = (hidden[rows].float() @ head.T).div_(temperature)
            totals[rows] = logits.logsumexp(-1)
            logits -= totals[rows, None]
            logprobs[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1)
            entropy[rows] = -torch.bmm(logits.exp()[:, None], logits[:, :, None]).flatten()
        ctx.save_for_backward(hidden, weight, targets, totals, entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.size = temperature, size
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """d log p_t / dz = 1_t - p and dH / dz = -p (log p + H), with z = logits / temperature and H the entropy."""
        hidden, weight, targets, totals, entropy = ctx.saved_tensors
        of_logprobs, of_entropy = grads
        head, grad_hidden, grad_weight = weight.float(), torch.empty_like(hidden), None
        for rows in _chunks(len(hidden), ctx.size):
            states = hidden[rows].float()
            slope = (states @ head.T).div_(ctx.temperature).sub_(totals[rows, None])
            probs = slope.exp()
            if of_entropy is None:
                slope.zero_()
            else:
                slope.add_(entropy[rows, None]).mul_(-of_entropy[rows, None])
            if of_logprobs is not None:
                slope -= of_logprobs[rows, None]
            slope *= probs
            del probs
            if of_logprobs is not None:
                slope.scatter_add_(-1, targets[rows, None], of_logprobs[rows, None])
            slope /= ctx.temperature
            grad_hidden[rows] = (slope @ head).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                grad_weight = slope.T @ states if grad_weight is None else grad_weight.addmm_(slope.T, states)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = hidden.float() @ weight.float().T / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
