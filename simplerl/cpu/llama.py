"""Decoder layers of the Llama family (Qwen2, Llama, Mistral) run through the kernels, in place of their own forward.

The modules, their parameters and their names stay as they are: adapters, checkpointing, hooks, exports go on working.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplerl.cpu.layer import MULTIPLE, Shape, decoder_layer
from simplerl.cpu.library import library
from simplerl.cpu.ops import alone, rms_norm, rotary_attention, swiglu

FAMILY = ("qwen2", "llama", "mistral")


def suits(model: nn.Module) -> bool:
    """Whether there are kernels and they compute what this model's layers do."""
    config: Any = model.config
    layers: Any = model.get_decoder().layers  # type: ignore[operator]
    return (
        config.model_type in FAMILY
        and config.hidden_act == "silu"
        and all(getattr(layer.self_attn, "sliding_window", None) is None for layer in layers)
        and (config.model_type != "mistral" or config.sliding_window is None)
        and library() is not None
    )


def fuse(model: nn.Module) -> bool:
    """Replaces the forward passes of a model's layers and norms; False, and nothing is changed, if they do not suit."""
    if not suits(model):
        return False
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for layer in decoder.layers:
        layer.forward = MethodType(_layer, layer)
    decoder.norm.forward = MethodType(_norm, decoder.norm)
    return True


def _norm(self: Any, x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return type(self).forward(self, x)
    return rms_norm(x.float(), self.weight, self.variance_epsilon)[1]


def _layer(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **more: Any,
) -> Tensor:
    """A decoder layer. Without `segments`, which say all of attention, masks, caches, GPUs are left to its own code."""
    given = (attention_mask, position_ids, past_key_values, use_cache, position_embeddings)
    segments = more.pop("pieces", None)
    if segments is None:
        plain = attention_mask is None and past_key_values is None and hidden_states.device.type == "cpu"
        if not plain or position_embeddings is None:
            return type(self).forward(self, hidden_states, *given, **more)
        segments = _pieces(hidden_states, more.get("cu_seq_lens_q"))
    assert position_embeddings is not None
    x = hidden_states.float().flatten(0, 1)
    if layer := whole(self, bf16=_rounds()):
        cos, sin = (each[0].float().contiguous() for each in position_embeddings)
        return decoder_layer(x, cos, sin, segments, *layer).view_as(hidden_states)
    x, normed = rms_norm(x, self.input_layernorm.weight, self.input_layernorm.variance_epsilon)
    x = x + _attend(self.self_attn, normed, position_embeddings, segments)
    norm, mlp = self.post_attention_layernorm, self.mlp
    x, normed = rms_norm(x, norm.weight, norm.variance_epsilon)
    x = x + mlp.down_proj(swiglu(project(normed, mlp.gate_proj, mlp.up_proj).float()))
    return x.view_as(hidden_states)


def _rounds() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def whole(layer: Any, *, bf16: bool) -> tuple[Any, ...] | None:
    """A layer as `decoder_layer` takes it; None where it cannot: adapters, sizes that fill no panel."""
    attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
    inputs, ups = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    linear = (*inputs, attention.o_proj, *ups)
    if not all(map(_plain, linear)):
        return None
    if any(each.bias is not None for each in linear[3:]) or norms[0].variance_epsilon != norms[1].variance_epsilon:
        return None
    heads = attention.config.num_attention_heads
    shape = Shape(heads, heads // attention.num_key_value_groups, attention.scaling, norms[0].variance_epsilon, bf16)
    bias = None if inputs[0].bias is None else torch.cat([each.bias for each in inputs])
    qkv = torch.cat([each.weight for each in inputs])
    return shape, norms[0].weight, qkv, bias, attention.o_proj.weight, norms[1].weight, *(each.weight for each in ups)


def _plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear:
        return False
    weight = layer.weight
    return (
        weight.dtype == torch.float32
        and weight.is_contiguous()
        and weight.shape[0] % MULTIPLE == weight.shape[1] % MULTIPLE == 0
    )


def _attend(attention: Any, x: Tensor, position_embeddings: tuple[Tensor, Tensor], segments: Tensor) -> Tensor:
    cos, sin = (each[0].float() for each in position_embeddings)
    qkv = project(x, attention.q_proj, attention.k_proj, attention.v_proj).float()
    heads, groups = attention.config.num_attention_heads, attention.num_key_value_groups
    sizes = {"heads": heads, "kv_heads": heads // groups}
    return attention.o_proj(rotary_attention(qkv, cos, sin, segments, scale=attention.scaling, **sizes))


def _pieces(hidden: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The sequences of a batch, padded or packed, as pieces of the flattened one."""
    rows, length = hidden.shape[:2]
    return alone(torch.arange(0, rows * length + 1, length) if cu_seqlens is None else cu_seqlens.long())


def project(x: Tensor, *layers: nn.Module) -> Tensor:
    """The outputs of several linear layers side by side; plain ones as one product."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)  # type: ignore[arg-type]
    return F.linear(x, torch.cat([layer.weight for layer in layers]), bias)  # type: ignore[arg-type]
