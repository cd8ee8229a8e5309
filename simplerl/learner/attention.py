"""Attention within each of several sequences that stand one after the other, for kernels without a variable length.

A mask over the whole pack would cost its length squared; here every sequence costs its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from simplerl.errors import ConfigError

PACKED = "simplerl_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Output [1, S, heads, head_dim] of causal attention inside the sequences that `cu_seq_lens_q` [n + 1] bounds.

    `query` is [1, heads, S, head_dim], `key` and `value` are [1, kv_heads, S, head_dim]. Without bounds every row of
    the batch is one sequence. Raises `ConfigError` for a sequence beyond a sliding window.
    """
    sizes = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    if sliding_window is not None and max(sizes) > sliding_window:
        raise ConfigError(
            f"train.packing=true: this model attends to {sliding_window} tokens and a sequence has {max(sizes)}; "
            "set model.attention=flash_attention_2 or train.packing=false"
        )
    segments = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, is_causal=True, **kwargs)[0] for q, k, v in segments]
    return torch.cat(outputs, dim=1), None


def no_mask(*_: object, **__: object) -> None:
    """`packed_attention` needs none."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, no_mask)
