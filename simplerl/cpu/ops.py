"""The kernels as functions of float32 tensors on the CPU, with gradients where training needs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplerl.cpu.library import library

TRACED = False
"""Whether calls show in a trace under their names."""


def run(name: str, *arguments: Tensor | int | float | None) -> None:
    """Calls a kernel; tensors go by address, None as null. Raises `MemoryError` when it got no scratch memory."""
    found = library()
    assert found is not None
    passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if TRACED:
        with torch.profiler.record_function(f"simplerl::{name}"):
            failed = getattr(found, name)(*passed)
    else:
        failed = getattr(found, name)(*passed)
    if failed:
        raise MemoryError(f"no memory for the scratch space of the kernel {name}")


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        y, scales = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scales)
        return x, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scales = ctx.saved_tensors
        through, grad = (each.contiguous() for each in grads)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        size = x.shape[-1]
        run("norm_backward", grad, through, x, weight, scales, x.numel() // size, size, grad_x, grad_weight)
        return grad_x, grad_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return gated(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        grad_x, size = torch.empty_like(x), x.shape[-1] // 2
        run("swiglu_backward", grads[0].contiguous(), x, x.numel() // x.shape[-1], size, grad_x)
        return grad_x


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, heads: int, kv_heads: int, scale: float
    ) -> Tensor:
        qkv, cos, sin, dim = qkv.contiguous(), cos.contiguous(), sin.contiguous(), cos.shape[-1]
        out, lse = qkv.new_empty(len(qkv), heads * dim), qkv.new_empty(len(qkv), heads)
        ctx.sizes = (len(cos), segments, len(segments), heads, kv_heads, dim, scale)
        run("attention_forward", qkv, cos, sin, *ctx.sizes, out, lse)
        ctx.save_for_backward(qkv, cos, sin, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:  # type: ignore[override]
        qkv, cos, sin, out, lse = ctx.saved_tensors
        grad_qkv = torch.zeros_like(qkv)
        run("attention_backward", qkv, cos, sin, *ctx.sizes, out, lse, grads[0].contiguous(), grad_qkv)
        return grad_qkv, None, None, None, None, None, None


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    rows = x.numel() // size
    y, scales = torch.empty_like(x), x.new_empty(rows)
    run("norm_forward", x, weight, rows, size, eps, y, scales)
    return y, scales


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x` itself and x / rms(x) * weight (arXiv:1910.07467), [..., d].

    `x` is handed on, so that its gradient along a residual connection is added to where the norm's is formed.
    """
    return _Norm.apply(x, weight, eps)  # type: ignore[return-value]


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up [..., m] of [gate, up] = `x` [..., 2 m] (arXiv:2002.05202)."""
    return _SwiGLU.apply(x)  # type: ignore[return-value]


def rotary_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, *, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """Causal attention inside each piece and to all of its prefix, rotary embedding included: [S, heads * dim].

    `qkv` is [S, (heads + 2 kv_heads) * dim] before rotation; `cos` and `sin` are [period, dim]: token t of S has row
    t % period. `segments` is int64 [n, 4], each with its first token, its length, and the first token and the length of
    its prefix; together they hold every token once. Responses to one prompt have it as their prefix.
    """
    return _Attention.apply(qkv, cos, sin, segments, heads, kv_heads, scale)  # type: ignore[return-value]


def alone(cu_seqlens: Tensor) -> Tensor:
    """Sequences between `cu_seqlens` [n + 1] as pieces without a prefix."""
    segments = torch.zeros(len(cu_seqlens) - 1, 4, dtype=torch.long)
    segments[:, 0], segments[:, 1] = cu_seqlens[:-1], cu_seqlens.diff()
    return segments


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row by the inverse of the cumulative distribution, and its log-prob: int64 and float32 [n].

    `logits` are [n, V], `uniforms` in [0, 1). Logits that are not finite give a log-prob that is not.
    """
    n, v = logits.shape
    tokens, logprobs = torch.empty(n, dtype=torch.long), torch.empty(n)
    run("draw", logits.contiguous(), temperatures.contiguous(), uniforms.contiguous(), n, v, tokens, logprobs)
    return tokens, logprobs


# --- without gradients ------------------------------------------------------------------------------------------------


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` of a contiguous tensor [n, d] by itself."""
    return _normalised(x, weight, eps)[0]


def gated(x: Tensor) -> Tensor:
    """`swiglu` of a contiguous tensor."""
    size = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], size)
    run("swiglu_forward", x, x.numel() // x.shape[-1], size, y)
    return y
