"""Bytes that a model's passes take: kept for the gradient, and needed for a moment. From what the operations save.

Hidden size d, MLP size m, queries q and keys k (numbers a token), e bytes of a number in matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

from simplerl.estimate.load import ExecutionMode
from simplerl.estimate.shapes import Shape
from simplerl.losses.sizes import MAX_LOGITS

ROWS = 4
"""Bytes of a float32 number."""


def kept(shape: Shape, way: ExecutionMode, longest: int) -> float:
    """Bytes a token that one decoder layer keeps for its gradient."""
    if way.fused:
        d, q, k, m = shape.hidden, shape.queries, shape.keys, shape.intermediate
        # Input, middle, attention's output, queries with keys and values, gate and up; two scales, the log-sum-exps.
        return 4 * (2 * d + q + (q + 2 * k) + 2 * m + 2 + shape.heads)
    return _kept_attention(shape, way, longest) + _kept_mlp(shape, way) + _kept_adapters(shape, way)


def _kept_attention(shape: Shape, way: ExecutionMode, longest: int) -> float:
    q, k, e = shape.queries, shape.keys, way.size
    norm = _kept_norm(shape, way, ("q_proj", "k_proj", "v_proj"))
    if way.kernels:
        copy = way.size * q if way.bfloat16 and way.trains("o_proj") else 0
        return norm + 4 * (q + (q + 2 * k) + shape.heads) + copy
    # What the output matrix reads is a copy: of the packs put together, or cast for an adapter.
    cast = way.bfloat16 and way.adapted is not None
    copy = e * q if way.trains("o_proj") and (way.attention == "sdpa" or cast) else 0
    if way.attention == "eager":
        # Keys and values repeated for every head; the softmax of all scores, and its cast copy.
        scores = shape.heads * longest * (4 + (e if way.bfloat16 else 0))
        return norm + 3 * e * q + (e * q if way.trains("o_proj") else 0) + scores
    return norm + e * (q + 2 * k) + e * q + copy + 4 * shape.heads


def _kept_mlp(shape: Shape, way: ExecutionMode) -> float:
    m, e = shape.intermediate, way.size
    norm = _kept_norm(shape, way, ("gate_proj", "up_proj"))
    product = e * m if way.trains("down_proj") else 0
    # The kernels take gate and up in float32; torch keeps the gate, its SiLU and up.
    return norm + (8 * m if way.kernels else 3 * e * m) + product


def _kept_norm(shape: Shape, way: ExecutionMode, readers: tuple[str, ...]) -> float:
    """The residual stream is float32. Each matrix that is trained keeps what it reads: one tensor for all in float32,
    under autocast a copy each, or one where the kernels make one product of all."""
    d, reading = shape.hidden, sum(map(way.trains, readers))
    together = way.kernels and way.adapted is None
    outputs = 2 * d * (min(1, reading) if together else reading) if way.bfloat16 else 4 * d * min(1, reading)
    if way.kernels:
        return 4 * d + 4 + outputs
    normalised = 4 * d if way.adapted is None else 0
    return 4 * d + 4 + normalised + outputs


def _kept_adapters(shape: Shape, way: ExecutionMode) -> float:
    return way.size * way.rank * len(way.adapted or ())


def kept_once(shape: Shape, way: ExecutionMode) -> float:
    """Bytes a token that the last norm and the response's states keep."""
    normalised = 0 if way.kernels or way.adapted is not None else 4 * shape.hidden
    return 4 * shape.hidden + 4 + normalised


def copied_weights(shape: Shape, way: ExecutionMode) -> float:
    """Bytes of weights that a layer keeps for its gradient as copies: cast ones, or those put side by side."""
    if way.bfloat16 and not way.fused:
        return 2 * shape.layer_matrices
    if not way.kernels:
        return 0
    # Queries, keys and values go side by side, and outside of `fused` gate and up; a group with an adapter does not.
    adapted = set(way.adapted or ())
    inputs = 0 if adapted & {"q_proj", "k_proj", "v_proj"} else shape.queries + 2 * shape.keys
    mlp = 0 if way.fused or adapted & {"gate_proj", "up_proj"} else 2 * shape.intermediate
    return 4 * (shape.hidden * (inputs + mlp) + shape.qkv_bias * inputs * way.fused)


def cached_casts(shape: Shape, way: ExecutionMode, *, frozen: bool) -> float:
    """Bytes of cast weights that autocast holds until a forward pass ends: of every matrix that is trained itself."""
    if not way.bfloat16 or frozen or way.fused:
        return 0
    # The kernels put weights side by side first, which are then no parameters and are cast each time.
    apart = ("o_proj", "down_proj") if way.kernels else tuple(shape.linear)
    return 2 * shape.layers * sum(shape.linear[name][0] * shape.linear[name][1] for name in apart)


def forward_work(shape: Shape, way: ExecutionMode, tokens: int) -> float:
    """The most bytes that one layer needs at a moment of a forward pass that keeps nothing, its input included."""
    d, q, k, m, e = shape.hidden, shape.queries, shape.keys, shape.intermediate, way.size
    stream = 4 * 4 * d  # the embeddings, the layer's input, the middle, what a norm makes of it
    if way.fused:
        side_by_side = 4 * d * (q + 2 * k)
        return tokens * 4 * (4 * d + 2 * q + 2 * k) + side_by_side + 4 * 3 * d * m
    cast = 2 * d * m if way.bfloat16 else 0
    # With an adapter: the gate's SiLU, the matrix's output, the adapter's, and that one scaled.
    adapted = 4 * e * m if way.adapted is not None else 0
    if way.kernels:
        # Gate and up as the product gives them, in float32, and their product; or the weights put side by side.
        together = tokens * (stream + 2 * e * m) + (4 + 2 * way.bfloat16) * 2 * d * m
        return max(tokens * (stream + max(12 * m, adapted)), 0 if adapted else together)
    attention = e * (q + 2 * k) + 4 * 3 * q  # rotating the queries takes three tensors in float32
    return tokens * (stream + max(attention, 3 * e * m, adapted)) + cast


def backward_work(shape: Shape, way: ExecutionMode, tokens: int) -> float:
    """The most bytes that one layer needs at a moment of its backward pass, beside what it kept."""
    d, q, k, m, e = shape.hidden, shape.queries, shape.keys, shape.intermediate, way.size
    if way.fused:
        # The gradients of all its weights from the beginning, and a copy of the matrices at work in another order.
        mlp = tokens * 4 * 2 * d + 4 * 3 * d * m
        attention = tokens * 4 * (3 * d + 2 * q + 2 * k) + 4 * d * (q + 2 * k)
        return 4 * shape.layer_parameters + max(mlp, attention)
    gradient = 4 * d * m if way.adapted is None else 0
    return tokens * (4 * 2 * d + (12 * m if way.kernels else e * m)) + gradient


class Head(NamedTuple):
    """Bytes of logits in a pass over a number of response tokens."""

    forward: float
    backward: float
    left: float
    """What is still there while the layers' gradients are formed."""


def head(shape: Shape, responses: int, *, entropy: bool) -> Head:
    """Logits, formed at once or in chunks; `entropy` says whether the loss has a gradient along it."""
    size = max(1, MAX_LOGITS // shape.vocab)
    if responses > size:
        chunk = 2 * ROWS * size * shape.vocab
        return Head(chunk, chunk, 0)
    one = ROWS * responses * shape.vocab
    # Logits, their log-softmax, its exponential and the product of both; two of them are kept.
    return Head(4 * one, (5 if entropy else 4) * one, 0 if entropy else 2 * one)
