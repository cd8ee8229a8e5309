"""Decoder layers of the Llama family (Qwen2, Llama, Mistral) run through the kernels, instead of their own forward.

Modules, parameters and their names stay as they are, so adapters, checkpointing, hooks and exports still work.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplerl.cpu.layer import LayerShape, LayerWeights, decoder_layer
from simplerl.cpu.library import kernels_available
from simplerl.cpu.ops import rms_norm, rotary_attention, segments_without_prefix, swiglu
from simplerl.cpu_sizes import TILE

FAMILY = ("qwen2", "llama", "mistral")


class AttentionConfig(Protocol):
    num_attention_heads: int


class Attention(Protocol):
    config: AttentionConfig
    num_key_value_groups: int
    scaling: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


class MLP(Protocol):
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


class Norm(Protocol):
    weight: Tensor
    variance_epsilon: float


class Layer(Protocol):
    """What the kernels read of a layer. Under adapters a projection is not an `nn.Linear` but wraps one."""

    input_layernorm: Norm
    self_attn: Attention
    post_attention_layernorm: Norm
    mlp: MLP


class RotaryEmbedding(Protocol):
    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]: ...


class Decoder(Protocol):
    """What the kernels read of a decoder; `transformers` does not declare these types."""

    embed_tokens: nn.Embedding
    layers: Sequence[Layer]
    norm: Norm
    rotary_emb: RotaryEmbedding


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder of a model that `is_supported`."""
    return cast(Any, model).get_decoder()


def is_supported(model: nn.Module) -> bool:
    """True if the kernels are available and compute what this model's layers do."""
    config: Any = model.config
    return (
        config.model_type in FAMILY
        and config.hidden_act == "silu"
        and all(getattr(layer.self_attn, "sliding_window", None) is None for layer in decoder_of(model).layers)
        and (config.model_type != "mistral" or config.sliding_window is None)
        and kernels_available()
    )


def fuse_for_training(model: nn.Module) -> bool:
    """Replace the forward passes of a model's layers and last norm by the kernels'.

    Returns False, and changes nothing, if the kernels are unavailable or do not support the model.
    """
    if not is_supported(model):
        return False
    decoder: Any = decoder_of(model)
    for layer in decoder.layers:
        layer.forward = MethodType(_layer_forward, layer)
    decoder.norm.forward = MethodType(_norm_forward, decoder.norm)
    return True


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return type(self).forward(self, x)
    return rms_norm(x.float(), self.weight, self.variance_epsilon)[1]


def _layer_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: object = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    *,
    segments: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Forward pass of a decoder layer.

    `segments` [n, 4], see `rotary_attention`, alone say what attends to what. Without them a mask, a cache or a GPU is
    left to the layer's own code.
    """
    if segments is None:
        plain = attention_mask is None and past_key_values is None and hidden_states.device.type == "cpu"
        if not plain or position_embeddings is None:
            arguments = (attention_mask, position_ids, past_key_values, use_cache, position_embeddings)
            return type(self).forward(self, hidden_states, *arguments, **more)
        segments = _segments_of_batch(hidden_states, more.get("cu_seq_lens_q"))
    assert position_embeddings is not None
    layer: Layer = self
    x = hidden_states.float().flatten(0, 1)
    if fused := fused_layer(layer, bf16=_autocasts_to_bf16()):
        cos, sin = (each[0].float().contiguous() for each in position_embeddings)
        return decoder_layer(x, cos, sin, segments, *fused).view_as(hidden_states)
    x, normed = rms_norm(x, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
    x = x + _attention(layer.self_attn, normed, position_embeddings, segments)
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    x, normed = rms_norm(x, norm.weight, norm.variance_epsilon)
    x = x + mlp.down_proj(swiglu(_project(normed, mlp.gate_proj, mlp.up_proj).float()))
    return x.view_as(hidden_states)


def _autocasts_to_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def fused_layer(layer: Layer, *, bf16: bool) -> tuple[LayerShape, LayerWeights] | None:
    """The arguments of `decoder_layer` for this layer. None: it has adapters, or sizes that fill no whole panel."""
    attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
    inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
    outputs = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if not all(map(_is_plain, (*inputs, *outputs))):
        return None
    if any(each.bias is not None for each in outputs) or norms[0].variance_epsilon != norms[1].variance_epsilon:
        return None
    heads = attention.config.num_attention_heads
    kv_heads = heads // attention.num_key_value_groups
    shape = LayerShape(heads, kv_heads, attention.scaling, norms[0].variance_epsilon, bf16)
    bias = None if inputs[0].bias is None else torch.cat([each.bias for each in inputs])
    qkv = torch.cat([each.weight for each in inputs])
    out, *mlp_weights = (each.weight for each in outputs)
    return shape, LayerWeights(norms[0].weight, qkv, bias, out, norms[1].weight, *mlp_weights)


def _is_plain(layer: nn.Module) -> bool:
    """True for a linear layer without adapters whose weight the kernels can read."""
    if type(layer) is not nn.Linear:
        return False
    weight = layer.weight
    return (
        weight.dtype == torch.float32
        and weight.is_contiguous()
        and weight.shape[0] % TILE == weight.shape[1] % TILE == 0
    )


def _attention(attention: Attention, x: Tensor, position_embeddings: tuple[Tensor, Tensor], segments: Tensor) -> Tensor:
    cos, sin = (each[0].float() for each in position_embeddings)
    qkv = _project(x, attention.q_proj, attention.k_proj, attention.v_proj).float()
    heads, groups = attention.config.num_attention_heads, attention.num_key_value_groups
    attended = rotary_attention(qkv, cos, sin, segments, heads=heads, kv_heads=heads // groups, scale=attention.scaling)
    return attention.o_proj(attended)


def _segments_of_batch(hidden: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The sequences of a padded or packed batch as segments of the flattened batch."""
    rows, length = hidden.shape[:2]
    padded = torch.arange(0, rows * length + 1, length)
    return segments_without_prefix(padded if cu_seqlens is None else cu_seqlens.long())


def _project(x: Tensor, *layers: nn.Linear) -> Tensor:
    """The outputs of several linear layers side by side, computed as one product if none has adapters."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return F.linear(x, torch.cat([layer.weight for layer in layers]), bias)
