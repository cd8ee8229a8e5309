"""A decoder layer of the Llama family as one operation with its gradient: float32 weights, no adapters, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from simplerl.cpu.ops import first_order, run_kernel


@dataclass(frozen=True)
class LayerShape:
    """Numbers of a layer that its weights do not tell."""

    heads: int
    kv_heads: int
    scale: float
    """Factor of attention scores, usually head_dim ** -0.5."""
    eps: float
    """Added to the mean square in both norms."""
    bf16: bool = False
    """True if the factors of products with weights are rounded to bfloat16. Their sums, and all else, are float32."""

    def run_kernel(self, name: str, *arguments: Tensor | int | float | None) -> None:
        """Call the kernel `name` in this layer's precision."""
        run_kernel(f"{name}_bf16" if self.bf16 else name, *arguments)


class LayerWeights(NamedTuple):
    """Weights of a layer, float32 and contiguous, each [out, in]; every size is a multiple of `TILE`."""

    input_norm: Tensor
    """[d]"""
    qkv: Tensor
    """[(heads + 2 kv_heads) dim, d]: queries, keys and values, one above the other."""
    qkv_bias: Tensor | None
    out: Tensor
    """[d, heads dim]"""
    mlp_norm: Tensor
    """[d]"""
    gate: Tensor
    """[m, d]"""
    up: Tensor
    """[m, d]"""
    down: Tensor
    """[d, m]"""


class _Forward(NamedTuple):
    """A layer's output and the intermediate results that its gradient needs."""

    y: Tensor
    qkv: Tensor
    """Queries, keys and values before rotation, [S, (heads + 2 kv_heads) dim]."""
    saved: tuple[Tensor, ...]


def decoder_layer(
    x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: LayerShape, weights: LayerWeights
) -> Tensor:
    """The layer's output [S, d] for `x` [S, d]; `cos`, `sin` and `segments` are those of `rotary_attention`.

    Norms, rotary embedding and gated activation follow arXiv:1910.07467, arXiv:2104.09864 and arXiv:2002.05202.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _DecoderLayer.apply(x, cos, sin, segments, shape, *weights))
    return _forward(x, cos, sin, segments, shape, weights, for_backward=False).y


def layer_and_qkv(
    x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: LayerShape, weights: LayerWeights
) -> tuple[Tensor, Tensor]:
    """The output of `decoder_layer`, and the layer's queries, keys and values before rotation. Without gradients."""
    forward = _forward(x, cos, sin, segments, shape, weights, for_backward=False)
    return forward.y, forward.qkv


def layer_qkv(x: Tensor, shape: LayerShape, weights: LayerWeights) -> tuple[Tensor, Tensor]:
    """A layer's queries, keys and values before rotation, and the scales [S] of its first norm. Without gradients."""
    (n, d), width = x.shape, len(weights.qkv)
    qkv, scales = x.new_empty(n, width), x.new_empty(n)
    norm, bias = weights.input_norm, weights.qkv_bias
    shape.run_kernel("norm_linear_forward", x, norm, shape.eps, weights.qkv, bias, n, d, width, qkv, scales)
    return qkv, scales


def _forward(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    segments: Tensor,
    shape: LayerShape,
    weights: LayerWeights,
    *,
    for_backward: bool,
) -> _Forward:
    (n, d), m, heads, dim = x.shape, len(weights.gate), shape.heads, cos.shape[-1]
    qkv, scales = layer_qkv(x, shape, weights)
    attended, lse = x.new_empty(n, heads * dim), x.new_empty(n, heads)
    run_kernel("attention_forward", qkv, cos, sin, *_attention_sizes(cos, segments, shape), attended, lse)
    middle, y = torch.empty_like(x), torch.empty_like(x)
    shape.run_kernel("add_linear_forward", x, attended, weights.out, n, heads * dim, d, middle)
    saved: tuple[Tensor, ...] = ()
    gate_up = mlp_scales = None
    if for_backward:
        gate_up, mlp_scales = x.new_empty(n, 2 * m), x.new_empty(n)
        saved = (x, cos, sin, scales, qkv, attended, lse, middle, gate_up, mlp_scales)
    mlp = (weights.mlp_norm, shape.eps, weights.gate, weights.up, weights.down)
    shape.run_kernel("mlp_forward", middle, *mlp, n, d, m, y, gate_up, mlp_scales)
    return _Forward(y, qkv, saved)


def _attention_sizes(cos: Tensor, segments: Tensor, shape: LayerShape) -> tuple[Tensor | int | float, ...]:
    return len(cos), segments, len(segments), shape.heads, shape.kv_heads, cos.shape[-1], shape.scale


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: LayerShape, *weights: Tensor | None
    ) -> Tensor:
        forward = _forward(x, cos, sin, segments, shape, LayerWeights._make(weights), for_backward=True)
        ctx.save_for_backward(*forward.saved, *weights)
        ctx.segments, ctx.shape = segments, shape
        return forward.y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin, scales, qkv, attended, lse, middle, gate_up, mlp_scales, *saved_weights = ctx.saved_tensors
        segments, shape, weights = ctx.segments, ctx.shape, LayerWeights._make(saved_weights)
        (n, d), width, m, inner = x.shape, len(weights.qkv), len(weights.gate), attended.shape[1]
        # Kernels add to the weights' gradients and overwrite the activations'.
        grad_weights = LayerWeights._make(w if w is None else torch.zeros_like(w) for w in weights)
        grad_middle, grad_x, grad_attended = torch.empty_like(x), torch.empty_like(x), torch.empty_like(attended)

        mlp = (weights.mlp_norm, mlp_scales, gate_up, weights.gate, weights.up, weights.down)
        grad_mlp = (grad_weights.mlp_norm, grad_weights.gate, grad_weights.up, grad_weights.down)
        shape.run_kernel("mlp_backward", grads[0].contiguous(), middle, *mlp, n, d, m, grad_middle, *grad_mlp)
        out = (weights.out, n, inner, d, grad_attended, grad_weights.out)
        shape.run_kernel("add_linear_backward", grad_middle, attended, *out)
        grad_qkv, sizes = torch.zeros_like(qkv), _attention_sizes(cos, segments, shape)
        run_kernel("attention_backward", qkv, cos, sin, *sizes, attended, lse, grad_attended, grad_qkv)
        inputs = (grad_qkv, grad_middle, x, weights.input_norm, scales, weights.qkv)
        grad_inputs = (grad_x, grad_weights.input_norm, grad_weights.qkv, grad_weights.qkv_bias)
        shape.run_kernel("norm_linear_backward", *inputs, n, d, width, *grad_inputs)
        return grad_x, None, None, None, None, *grad_weights
