"""Attention of one new token per row to that row's KV cache, as batched matrix products over groups of query heads.

Under a mask `sdpa` copies keys and values once per query head of a group and, on a CPU, takes about 1.5 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "simplerl_grouped"
"""Name under which `transformers` knows this attention."""


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Output [rows, 1, heads, head_dim] for `query` [rows, heads, 1, head_dim] under an additive mask.

    `key` and `value` are [rows, kv_heads, width, head_dim]. A prefill, with more than one query per row, runs `sdpa`.
    """
    if query.shape[2] > 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, kv_heads, width, head_dim = key.shape
    grouped_query = query.reshape(rows * kv_heads, -1, head_dim)
    scores = torch.bmm(grouped_query, key.flatten(0, 1).transpose(1, 2)).view(rows, -1, width)
    scores = scores * (head_dim**-0.5 if scaling is None else scaling) + attention_mask[:, 0]
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype).view(rows * kv_heads, -1, width)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, -1, value.shape[-1]), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
