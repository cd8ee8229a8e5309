"""Sizes of models: read from their config.json, or known by name. No torch, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from simplerl.config import TensorSpec


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-like decoder (Qwen2, Llama, Mistral)."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int
    tied: bool
    qkv_bias: bool

    @property
    def query_size(self) -> int:
        """Numbers in the queries of one token, and in the output of attention."""
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Numbers in the keys of one token, and in its values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each matrix of a layer, by its `transformers` name."""
        d, m, q, k = self.hidden, self.intermediate, self.query_size, self.key_size
        attention = {"q_proj": (d, q), "k_proj": (d, k), "v_proj": (d, k), "o_proj": (q, d)}
        return attention | {"gate_proj": (d, m), "up_proj": (d, m), "down_proj": (m, d)}

    @property
    def layer_matrix_parameters(self) -> int:
        """Parameters in the matrices of a layer."""
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def layer_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors of a layer."""
        matrices = [(outputs, inputs) for inputs, outputs in self.matrices.values()]
        biases = [(self.query_size,), (self.key_size,), (self.key_size,)] if self.qkv_bias else []
        norms = [(self.hidden,), (self.hidden,)]
        return tuple(TensorSpec(shape, in_layer=True) for shape in (*matrices, *biases, *norms))

    @property
    def layer_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.layer_tensors)

    @property
    def head_parameters(self) -> int:
        """Parameters of the language head. A tied head shares them with the embedding."""
        return self.vocab * self.hidden

    @property
    def outer_parameters(self) -> int:
        """Parameters outside of the layers: embedding, head, the last norm."""
        return (2 - self.tied) * self.vocab * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the causal language model; tied ones count once."""
        return self.outer_parameters + self.layers * self.layer_parameters

    @property
    def critic_parameters(self) -> int:
        """Parameters of a critic: the model without its language head, and a linear value head."""
        return self.parameters - (not self.tied) * self.vocab * self.hidden + self.hidden + 1

    @property
    def kv_numbers(self) -> int:
        """Numbers in the keys and values of one token, all layers together."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def _qwen(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, *, small: bool = False) -> Shape:
    vocab = 151_936 if small else 152_064
    return Shape(vocab, hidden, layers, heads, kv_heads, intermediate, hidden // heads, small, True)


KNOWN = {
    "Qwen2.5-0.5B": _qwen(896, 24, 14, 2, 4864, small=True),
    "Qwen2.5-1.5B": _qwen(1536, 28, 12, 2, 8960, small=True),
    "Qwen2.5-3B": _qwen(2048, 36, 16, 2, 11008, small=True),
    "Qwen2.5-7B": _qwen(3584, 28, 28, 4, 18944),
    "Qwen2.5-14B": _qwen(5120, 48, 40, 8, 13824),
    "Qwen2.5-32B": _qwen(5120, 64, 40, 8, 27648),
    "Qwen2.5-Math-1.5B": _qwen(1536, 28, 12, 2, 8960, small=True),
    "Qwen2.5-Math-7B": _qwen(3584, 28, 28, 4, 18944),
    "Llama-3.1-8B": Shape(128_256, 4096, 32, 32, 8, 14336, 128, False, False),
    "Mistral-7B-v0.1": Shape(32_000, 4096, 32, 32, 8, 14336, 128, False, False),
    "Mistral-Small-24B-Base-2501": Shape(131_072, 5120, 40, 32, 8, 32768, 128, False, False),
    "deepseek-math-7b-base": Shape(102_400, 4096, 30, 32, 32, 11008, 128, False, False),
}
"""Sizes of published models, by the last part of their names."""


def known_shape(path: str) -> Shape | None:
    """Sizes of a model folder, of the embedded base, or of a published model by its name. None: unknown."""
    folder = Path(str(resources.files("simplerl") / "assets" / path)) if path == "tiny-math-base" else Path(path)
    file = folder / "config.json"
    if not file.is_file():
        return KNOWN.get(path.rpartition("/")[2].removesuffix("-Instruct"))
    return shape_of(json.loads(file.read_text(encoding="utf-8")))


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Sizes in a `transformers` config.json. None: not a supported architecture."""
    if config.get("model_type") not in ("qwen2", "llama", "mistral"):
        return None
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        vocab=config["vocab_size"],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        intermediate=config["intermediate_size"],
        head_dim=config.get("head_dim") or hidden // heads,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=config["model_type"] == "qwen2",
    )
