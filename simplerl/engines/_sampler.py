"""Drawing tokens: temperature, then top-k, then top-p, then the inverse of the cumulative distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simplerl import cpu


class SamplingTensors(NamedTuple):
    """How each row samples; every tensor is [rows]. A greedy row has temperature 1, top_k 0 and top_p 1."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    greedy: Tensor


def draw_tokens(
    logits: Tensor, uniforms: Tensor, sampling: SamplingTensors, *, filtered: bool = True, greedy: bool = True
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob under the distribution it was drawn from, int64 and float32 [rows].

    `logits` are float32 [rows, V], `uniforms` float32 [rows] in [0, 1). A greedy row takes the most likely token and
    reports its log-prob at temperature 1. `filtered` and `greedy` may be False if no row needs top-k / top-p, or none
    is greedy: that is faster. A token of probability zero is never drawn. A row whose logits are not finite gets a
    log-prob that is not finite.
    """
    if not filtered and not greedy and logits.device.type == "cpu" and cpu.kernels_available():
        return cpu.draw_tokens(logits, sampling.temperature, uniforms)
    probs = torch.softmax(logits / sampling.temperature[:, None], dim=-1)
    kept = _keep_top(probs, sampling.top_k, sampling.top_p) if filtered else probs
    cumulative = kept.cumsum(-1)
    total = cumulative[:, -1:]
    # First index whose cumulative exceeds u x total: a zero-probability token adds nothing and is passed over.
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True).clamp_(max=logits.shape[-1] - 1)
    if greedy:
        tokens = torch.where(sampling.greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    chosen = kept.gather(-1, tokens)
    if not bool((chosen > 0).all()):
        # A parallel scan may round its sums out of order; a NaN stays one.
        tokens = torch.where(chosen == 0, kept.argmax(-1, keepdim=True), tokens)
        chosen = kept.gather(-1, tokens)
    return tokens.squeeze(-1), (chosen / total).log().squeeze(-1)


def _keep_top(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The probabilities of the tokens that top-k and then top-p keep, zero elsewhere, not renormalised.

    top-p keeps the smallest set of most likely tokens whose share of the tokens after top-k reaches p. Ties go to the
    smaller token id.
    """
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(probs.shape[-1], device=probs.device)
    ranked = torch.where((top_k[:, None] == 0) | (rank < top_k[:, None]), ranked, 0.0)
    cumulative = ranked.cumsum(-1)
    before = cumulative - ranked
    inside = (before < top_p[:, None] * cumulative[:, -1:]) | (top_p[:, None] >= 1) | (rank == 0)
    return torch.zeros_like(probs).scatter_(-1, order, torch.where(inside, ranked, 0.0))
