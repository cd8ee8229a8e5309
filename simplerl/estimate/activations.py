"""Bytes of a model's forward and backward passes: what is saved for the gradient, and workspace needed temporarily.

The formulas count the tensors that the operations save (`tests/parity/test_estimate_activations.py` compares them with
autograd's). Symbols: hidden size d, MLP size m, numbers in a token's queries q and in its keys k, bytes e of a number
in a matrix product. A float32 number has 4 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from simplerl.estimate.execution import ExecutionMode
from simplerl.estimate.shapes import Shape
from simplerl.losses.sizes import MAX_LOGITS


def saved_per_token(shape: Shape, mode: ExecutionMode, sequence: int) -> float:
    """Bytes that a decoder layer saves for its gradient, per token of sequences of this length."""
    if mode.fused:
        d, q, k, m = shape.hidden, shape.query_size, shape.key_size, shape.intermediate
        # Input, residual between attention and MLP, attention's output, queries with keys and values, gate and up;
        # the scales of both norms, the log-sum-exps.
        return 4 * (2 * d + q + (q + 2 * k) + 2 * m + 2 + shape.heads)
    return _attention(shape, mode, sequence) + _mlp(shape, mode) + _adapters(mode)


def _attention(shape: Shape, mode: ExecutionMode, sequence: int) -> float:
    q, k, e = shape.query_size, shape.key_size, mode.element_bytes
    norm = _norm(shape, mode, ("q_proj", "k_proj", "v_proj"))
    if mode.kernels:
        copy = e * q if mode.bfloat16 and mode.trains("o_proj") else 0
        return norm + 4 * (q + (q + 2 * k) + shape.heads) + copy
    # The output matrix reads a copy of attention's output: sdpa joins the packs, and an adapter reads a cast.
    is_cast = mode.bfloat16 and mode.lora_targets is not None
    copy = e * q if mode.trains("o_proj") and (mode.attention == "sdpa" or is_cast) else 0
    if mode.attention == "eager":
        # Keys and values repeated for every query head; the softmax of all scores, and its cast copy.
        scores = shape.heads * sequence * (4 + (e if mode.bfloat16 else 0))
        return norm + 3 * e * q + (e * q if mode.trains("o_proj") else 0) + scores
    return norm + e * (q + 2 * k) + e * q + copy + 4 * shape.heads


def _mlp(shape: Shape, mode: ExecutionMode) -> float:
    m, e = shape.intermediate, mode.element_bytes
    norm = _norm(shape, mode, ("gate_proj", "up_proj"))
    product = e * m if mode.trains("down_proj") else 0
    # The kernels save gate and up in float32. Torch saves the gate, its SiLU, and up.
    return norm + (8 * m if mode.kernels else 3 * e * m) + product


def _norm(shape: Shape, mode: ExecutionMode, readers: tuple[str, ...]) -> float:
    """Bytes per token that a norm and the matrices that read its output save.

    The residual stream is float32. Trained matrices save what they read: one tensor for all of them in float32; under
    autocast a cast copy each, or one if the kernels compute all of them in one product.
    """
    d, trained = shape.hidden, sum(map(mode.trains, readers))
    in_one_product = mode.kernels and mode.lora_targets is None
    outputs = 2 * d * (min(1, trained) if in_one_product else trained) if mode.bfloat16 else 4 * d * min(1, trained)
    if mode.kernels:
        return 4 * d + 4 + outputs
    normalised = 4 * d if mode.lora_targets is None else 0
    return 4 * d + 4 + normalised + outputs


def _adapters(mode: ExecutionMode) -> float:
    return mode.element_bytes * mode.lora_rank * len(mode.lora_targets or ())


def final_norm_per_token(shape: Shape, mode: ExecutionMode) -> float:
    """Bytes that the norm after the last layer saves per token."""
    normalised = 0 if mode.kernels or mode.lora_targets is not None else 4 * shape.hidden
    return 4 * shape.hidden + 4 + normalised


def copied_weights(shape: Shape, mode: ExecutionMode) -> float:
    """Bytes of weight copies that a layer saves for its gradient: cast, or joined into one matrix for the kernels."""
    if mode.bfloat16 and not mode.fused:
        return 2 * shape.layer_matrix_parameters
    if not mode.kernels:
        return 0
    # The kernels join queries, keys and values, and unless the layer is fused gate and up. Adapters prevent both.
    adapted = set(mode.lora_targets or ())
    inputs = 0 if adapted & {"q_proj", "k_proj", "v_proj"} else shape.query_size + 2 * shape.key_size
    mlp = 0 if mode.fused or adapted & {"gate_proj", "up_proj"} else 2 * shape.intermediate
    return 4 * (shape.hidden * (inputs + mlp) + shape.qkv_bias * inputs * mode.fused)


def autocast_cache(shape: Shape, mode: ExecutionMode, *, frozen: bool) -> float:
    """Bytes of cast weights that autocast caches until a forward pass ends: those of every trained matrix."""
    if not mode.bfloat16 or frozen or mode.fused:
        return 0
    # Matrices joined for the kernels are no parameters: they are cast every time and never cached.
    separate = ("o_proj", "down_proj") if mode.kernels else tuple(shape.matrices)
    return 2 * shape.layers * sum(shape.matrices[name][0] * shape.matrices[name][1] for name in separate)


def forward_workspace(shape: Shape, mode: ExecutionMode, tokens: int) -> float:
    """Peak bytes of one layer in a forward pass that saves nothing, its input included."""
    d, q, k, m, e = shape.hidden, shape.query_size, shape.key_size, shape.intermediate, mode.element_bytes
    residual = 4 * 4 * d  # the embeddings, the layer's input, its middle, the output of a norm
    if mode.fused:
        joined_weights = 4 * d * (q + 2 * k)
        return tokens * 4 * (4 * d + 2 * q + 2 * k) + joined_weights + 4 * 3 * d * m
    cast_weights = 2 * d * m if mode.bfloat16 else 0
    # With an adapter: the gate's SiLU, the matrix's output, the adapter's output, and that one scaled.
    adapter = 4 * e * m if mode.lora_targets is not None else 0
    if mode.kernels:
        # Either gate, up and their product in float32, or gate and up as their product gives them and joined weights.
        joined = tokens * (residual + 2 * e * m) + (4 + 2 * mode.bfloat16) * 2 * d * m
        return max(tokens * (residual + max(12 * m, adapter)), 0 if adapter else joined)
    attention = e * (q + 2 * k) + 4 * 3 * q  # rotating the queries takes three float32 tensors
    return tokens * (residual + max(attention, 3 * e * m, adapter)) + cast_weights


def backward_workspace(shape: Shape, mode: ExecutionMode, tokens: int) -> float:
    """Peak bytes of one layer in its backward pass, without what the forward pass saved."""
    d, q, k, m, e = shape.hidden, shape.query_size, shape.key_size, shape.intermediate, mode.element_bytes
    if mode.fused:
        # The gradients of all its weights from the start, and reordered copies of the matrices in use.
        mlp = tokens * 4 * 2 * d + 4 * 3 * d * m
        attention = tokens * 4 * (3 * d + 2 * q + 2 * k) + 4 * d * (q + 2 * k)
        return 4 * shape.layer_parameters + max(mlp, attention)
    gradient = 4 * d * m if mode.lora_targets is None else 0
    return tokens * (4 * 2 * d + (12 * m if mode.kernels else e * m)) + gradient


class LogitsBytes(NamedTuple):
    """Bytes of the logits of a micro-batch at three points of a pass."""

    forward: float
    backward: float
    after_backward: float
    """Still held while the gradients of the layers are computed."""


def logits_bytes(shape: Shape, response_tokens: int, *, entropy_gradient: bool) -> LogitsBytes:
    """Bytes of the logits of response tokens, computed at once or, beyond `MAX_LOGITS`, in chunks."""
    chunk_tokens = max(1, MAX_LOGITS // shape.vocab)
    if response_tokens > chunk_tokens:
        chunk = 2 * 4 * chunk_tokens * shape.vocab
        return LogitsBytes(chunk, chunk, 0)
    one = 4 * response_tokens * shape.vocab
    # Logits, their log-softmax, its exponential and the product of both. Two of them are saved for the gradient.
    return LogitsBytes(4 * one, (5 if entropy_gradient else 4) * one, 0 if entropy_gradient else 2 * one)
