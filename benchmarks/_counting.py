"""Floating-point operations of a language model's training, counted by hand. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a Qwen2 model decides how much there is to compute."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices: queries, keys and values, output, gate, up and down."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    @classmethod
    def read(cls, model: Path) -> Shape:
        """The shape of the model in a `transformers` folder."""
        config: dict[str, Any] = json.loads((model / "config.json").read_text())
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        return cls(*(config[name] for name in (*names, "vocab_size")))


def forward_flop(shape: Shape, prompt: int, response: int, *, shared: int = 1, head: bool = True) -> float:
    """Operations of a forward pass, per response of `response` tokens to a prompt of `prompt` tokens.

    A multiplication and an addition are two. With W the weights of all layers' matrices, V those of the head:

        2 W (prompt / shared + response)  +  2 V response  +  4 layers heads head_dim (attended tokens)

    Token i of a sequence attends to i tokens, itself among them. The head is computed at response positions alone, and
    not at all for a critic (`head=False`). `shared` responses use one computation of their prompt. Norms, rotations,
    activations and the softmax are not counted, nor is anything that is computed again.
    """
    attended = prompt * (prompt + 1) / 2 / shared + response * prompt + response * (response + 1) / 2
    matrices = 2 * shape.layers * shape.layer_weights * (prompt / shared + response)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * attended
    return matrices + attention + (2 * shape.head_weights * response if head else 0)


def training_flop(shape: Shape, prompt: int, response: int, *, shared: int = 1, critic: bool = False) -> float:
    """Operations of one update, per response: 6 where a forward pass has 2, 12 where it has 4.

    A critic adds its own. Its values, like the old log-probs where one update follows, come with the forward pass that
    the update needs anyway, so nothing is counted for scoring.
    """
    actor = 3 * forward_flop(shape, prompt, response, shared=shared)
    return actor + (3 * forward_flop(shape, prompt, response, shared=shared, head=False) if critic else 0)


def decoding_bytes(shape: Shape, prompt: int, response: int, batch: int, width: int) -> float:
    """Bytes that decoding a batch must read: every weight once per token position, and the keys and values so far.

    `width` is the size of a number. Caches of the processor may hold some of it; then memory is no bound.
    """
    weights = shape.layers * shape.layer_weights + shape.head_weights
    attended = response * prompt + response * (response + 1) / 2
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * attended * batch
    return width * (weights * response + cache)
