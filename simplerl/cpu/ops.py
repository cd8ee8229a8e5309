"""The kernels as functions of float32 tensors on the CPU, with gradients where training needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simplerl.cpu.library import library

BackwardT = TypeVar("BackwardT", bound=Callable[..., object])

_traced = False


@contextmanager
def trace_kernels() -> Iterator[None]:
    """Record kernel calls of all threads in `torch.profiler` traces, as `simplerl::NAME`, while the context is open."""
    global _traced
    _traced = True
    try:
        yield
    finally:
        _traced = False


def run_kernel(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel; a tensor is passed as its address, None as null.

    Raises `MemoryError` if the kernel got no scratch memory.
    """
    kernels = library()
    assert kernels is not None
    passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    with torch.profiler.record_function(f"simplerl::{name}") if _traced else nullcontext():
        failed = getattr(kernels, name)(*passed)
    if failed:
        raise MemoryError(f"no memory for the scratch space of the kernel {name}")


def first_order(backward: BackwardT) -> BackwardT:
    """`once_differentiable`, whose own declaration loses the signature: a second derivative raises an error."""
    return cast(BackwardT, once_differentiable(backward))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        y, scales = _norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scales)
        return x, y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        grad_residual, grad_y = (each.contiguous() for each in grads)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        size = x.shape[-1]
        sizes = (x.numel() // size, size)
        run_kernel("norm_backward", grad_y, grad_residual, x, weight, scales, *sizes, grad_x, grad_weight)
        return grad_x, grad_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        size = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], size)
        run_kernel("swiglu_forward", x, x.numel() // x.shape[-1], size, y)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x, size = torch.empty_like(x), x.shape[-1] // 2
        run_kernel("swiglu_backward", grads[0].contiguous(), x, x.numel() // x.shape[-1], size, grad_x)
        return grad_x


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, heads: int, kv_heads: int, scale: float
    ) -> Tensor:
        qkv, cos, sin, dim = qkv.contiguous(), cos.contiguous(), sin.contiguous(), cos.shape[-1]
        out, lse = qkv.new_empty(len(qkv), heads * dim), qkv.new_empty(len(qkv), heads)
        ctx.sizes = (len(cos), segments, len(segments), heads, kv_heads, dim, scale)
        run_kernel("attention_forward", qkv, cos, sin, *ctx.sizes, out, lse)
        ctx.save_for_backward(qkv, cos, sin, out, lse)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        qkv, cos, sin, out, lse = ctx.saved_tensors
        grad_qkv = torch.zeros_like(qkv)
        run_kernel("attention_backward", qkv, cos, sin, *ctx.sizes, out, lse, grads[0].contiguous(), grad_qkv)
        return grad_qkv, None, None, None, None, None, None


def _norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    rows = x.numel() // size
    y, scales = torch.empty_like(x), x.new_empty(rows)
    run_kernel("norm_forward", x, weight, rows, size, eps, y, scales)
    return y, scales


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x` itself and x / rms(x) * weight (arXiv:1910.07467), [..., d].

    The residual connection must use the returned `x`: the backward kernel then adds its gradient to the norm's.
    """
    return cast(tuple[Tensor, Tensor], _RMSNorm.apply(x, weight, eps))


def rms_norm_no_grad(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight for a contiguous `x` [..., d], without gradients."""
    return _norm_forward(x, weight, eps)[0]


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up [..., m] of [gate, up] = `x` [..., 2 m] (arXiv:2002.05202)."""
    return cast(Tensor, _SwiGLU.apply(x))


def rotary_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, segments: Tensor, *, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """Causal attention inside each segment and to all of its prefix, rotary embedding included: [S, heads * dim].

    `qkv` is [S, (heads + 2 kv_heads) * dim] before rotation. `cos` and `sin` are [period, dim]: token t of S has row
    t % period. `segments` is int64 [n, 4]: first token and length of the segment, first token and length of its prefix.
    Every token is in exactly one segment. All responses to one prompt have it as their prefix.
    """
    return cast(Tensor, _RotaryAttention.apply(qkv, cos, sin, segments, heads, kv_heads, scale))


def segments_without_prefix(cu_seqlens: Tensor) -> Tensor:
    """The sequences that `cu_seqlens` [n + 1] delimits as segments [n, 4] without a prefix."""
    segments = torch.zeros(len(cu_seqlens) - 1, 4, dtype=torch.long)
    segments[:, 0], segments[:, 1] = cu_seqlens[:-1], cu_seqlens.diff()
    return segments


def draw_tokens(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row by the inverse of the cumulative distribution, and its log-prob: int64 and float32 [n].

    `logits` are float32 [n, V], `uniforms` float32 [n] in [0, 1). A row whose logits are not finite gets a log-prob
    that is not finite.
    """
    n, v = logits.shape
    tokens, logprobs = torch.empty(n, dtype=torch.long), torch.empty(n)
    run_kernel("draw", logits.contiguous(), temperatures.contiguous(), uniforms.contiguous(), n, v, tokens, logprobs)
    return tokens, logprobs
