"""A decoder layer of the Llama family as one operation, with its gradient: float32 weights, no adapters, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplerl.cpu.ops import run

MULTIPLE = 16
"""What the sizes of weights must be multiples of, TILE of simd.h."""


@dataclass(frozen=True)
class Shape:
    """What a layer's weights do not say of it."""

    heads: int
    kv_heads: int
    scale: float
    eps: float
    bf16: bool = False
    """Whether the factors of products with weights are rounded to bfloat16; their sums, and all else, are float32."""

    def run(self, name: str, *arguments: Any) -> None:
        run(f"{name}_bf16" if self.bf16 else name, *arguments)


def decoder_layer(
    x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: Shape, *weights: Tensor | None
) -> Tensor:
    """The layer's output [S, d] for `x` [S, d]; `cos`, `sin` and `segments` are those of `rotary_attention`.

    The weights are, in this order: the first norm's [d]; of queries, keys and values, one above the other
    [(heads + 2 kv_heads) dim, d], and their bias or None; of the output [d, heads dim]; the second norm's; of gate and
    up [m, d]; of down [d, m]. Every size is a multiple of `MULTIPLE`. Norms, attention and gate are as in
    arXiv:1910.07467, arXiv:2104.09864 and arXiv:2002.05202.
    """
    if torch.is_grad_enabled():
        return _Layer.apply(x, cos, sin, segments, shape, *weights)  # type: ignore[return-value]
    return _forward(x, cos, sin, segments, shape, weights, keep=False)[0]


def layer_and_keys(
    x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: Shape, *weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `decoder_layer` but without gradients; also queries, keys and values, not rotated,
    [S, (heads + 2 kv_heads) dim]."""
    y, (_, _, _, _, qkv, *_) = _forward(x, cos, sin, segments, shape, weights, keep=False)
    return y, qkv


def attention_inputs(x: Tensor, shape: Shape, *weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries, keys and values of a layer as above, and the scales [S] of its first norm; of its weights, all or the
    first three."""
    first, qkv_weight, bias = weights[:3]
    assert qkv_weight is not None
    (n, d), width = x.shape, len(qkv_weight)
    qkv, scales = x.new_empty(n, width), x.new_empty(n)
    shape.run("norm_linear_forward", x, first, shape.eps, qkv_weight, bias, n, d, width, qkv, scales)
    return qkv, scales


def _forward(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    segments: Tensor,
    shape: Shape,
    weights: tuple[Tensor | None, ...],
    *,
    keep: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and what its gradient needs besides the weights."""
    _, _, _, out_weight, second, gate, up, down = weights
    assert gate is not None
    (n, d), m, heads, dim = x.shape, len(gate), shape.heads, cos.shape[-1]
    qkv, scales = attention_inputs(x, shape, *weights)
    attended, lse = x.new_empty(n, heads * dim), x.new_empty(n, heads)
    run("attention_forward", qkv, cos, sin, *_sizes(cos, segments, shape), attended, lse)
    middle, y = torch.empty_like(x), torch.empty_like(x)
    shape.run("add_linear_forward", x, attended, out_weight, n, heads * dim, d, middle)
    kept, later = (x.new_empty(n, 2 * m), x.new_empty(n)) if keep else (None, None)
    shape.run("mlp_forward", middle, second, shape.eps, gate, up, down, n, d, m, y, kept, later)
    saved = (x, cos, sin, scales, qkv, attended, lse, middle)
    return y, saved if kept is None or later is None else (*saved, kept, later)


def _sizes(cos: Tensor, segments: Tensor, shape: Shape) -> tuple[Any, ...]:
    return len(cos), segments, len(segments), shape.heads, shape.kv_heads, cos.shape[-1], shape.scale


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, shape: Shape, *weights: Tensor | None
    ) -> Tensor:
        y, saved = _forward(x, cos, sin, segments, shape, weights, keep=True)
        ctx.save_for_backward(*saved, *weights)
        ctx.given = segments, shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, cos, sin, scales, qkv, attended, lse, middle, kept, later, *weights = ctx.saved_tensors
        segments, shape = ctx.given
        first, qkv_weight, _, out_weight, second, gate, up, down = weights
        (n, d), width, m, inner = x.shape, len(qkv_weight), len(gate), attended.shape[1]
        summed = [None if weight is None else torch.zeros_like(weight) for weight in weights]
        of_first, of_qkv, of_bias, of_out, *of_mlp = summed

        of_middle, of_x, of_attended = torch.empty_like(x), torch.empty_like(x), torch.empty_like(attended)
        given = (grads[0].contiguous(), middle, second, later, kept, gate, up, down)
        shape.run("mlp_backward", *given, n, d, m, of_middle, *of_mlp)
        shape.run("add_linear_backward", of_middle, attended, out_weight, n, inner, d, of_attended, of_out)
        of_heads = torch.zeros_like(qkv)
        run("attention_backward", qkv, cos, sin, *_sizes(cos, segments, shape), attended, lse, of_attended, of_heads)
        given = (of_heads, of_middle, x, first, scales, qkv_weight)
        shape.run("norm_linear_backward", *given, n, d, width, of_x, of_first, of_qkv, of_bias)
        return of_x, None, None, None, None, *summed
