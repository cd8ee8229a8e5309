"""The sizes of models: read from their settings, or known by name. No torch, no network."""

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
    def queries(self) -> int:
        """Numbers in one token's queries, and in what attention makes of them."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers in one token's keys, and in its values."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by their `transformers` names."""
        d, m = self.hidden, self.intermediate
        attention = {"q_proj": (d, self.queries), "k_proj": (d, self.keys), "v_proj": (d, self.keys)}
        return attention | {"o_proj": (self.queries, d), "gate_proj": (d, m), "up_proj": (d, m), "down_proj": (m, d)}

    @property
    def layer_matrices(self) -> int:
        """Weights in a layer's matrices."""
        return sum(size * out for size, out in self.linear.values())

    @property
    def layer_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors of a layer."""
        matrices = [(out, size) for size, out in self.linear.values()]
        biases = [(self.queries,), (self.keys,), (self.keys,)] if self.qkv_bias else []
        norms = [(self.hidden,), (self.hidden,)]
        return tuple(TensorSpec(shape, in_layer=True) for shape in (*matrices, *biases, *norms))

    @property
    def layer_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.layer_tensors)

    @property
    def head(self) -> int:
        """Weights of the language head, which may be the embedding's."""
        return self.vocab * self.hidden

    @property
    def outer_parameters(self) -> int:
        """What is not in a layer: embeddings, head, the last norm."""
        return (2 - self.tied) * self.vocab * self.hidden + self.hidden

    @property
    def parameters(self) -> int:
        """Of the causal language model, tied ones once."""
        return self.outer_parameters + self.layers * self.layer_parameters

    @property
    def critic_parameters(self) -> int:
        """The body without its language head, and a linear value head."""
        return self.parameters - (not self.tied) * self.vocab * self.hidden + self.hidden + 1

    @property
    def cache_elements(self) -> int:
        """Keys and values of one token."""
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
"""Published sizes, by the last part of the model's name."""


def known_shape(path: str) -> Shape | None:
    """The sizes of a model folder, of the embedded base, or of a published model by its name; None if unknown."""
    folder = Path(str(resources.files("simplerl") / "assets" / path)) if path == "tiny-math-base" else Path(path)
    file = folder / "config.json"
    if not file.is_file():
        return KNOWN.get(path.rpartition("/")[2].removesuffix("-Instruct"))
    return shape_of(json.loads(file.read_text(encoding="utf-8")))


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The sizes in a `transformers` config.json; None for an architecture this knows nothing of."""
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
