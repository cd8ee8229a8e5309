"""A causal language model of the Llama family decoded through the C kernels: on a CPU, several times as fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from simplerl.cpu.decoding import TILE, BlockCache, DecodingLayer, cache_prompt, decode_layers, panels, product
from simplerl.cpu.layer import attention_inputs, layer_and_keys
from simplerl.cpu.llama import suits, whole
from simplerl.cpu.ops import normalised
from simplerl.engines._causal_model import CausalModel

_ROOM = 64


def decodable(model: PreTrainedModel) -> bool:
    """Whether the kernels are there and can decode this model: float32 weights, and sizes that fill whole panels."""
    return suits(model) and whole(model.get_decoder().layers[0], bf16=False) is not None  # type: ignore[index]


class FusedModel(CausalModel):
    """As `CausalModel`, and gives the same numbers but for rounding.

    With `bf16` the factors of products with a layer's weights are rounded, as in the learner; weights are float32.
    """

    decoder: Any
    cpu_threads = None

    def __init__(self, model: PreTrainedModel, *, bf16: bool = False) -> None:
        self._bf16 = bf16
        super().__init__(model)

    @property
    def rounds(self) -> bool:
        return self._bf16

    def new_cache(self, slots: int, length: int) -> BlockCache:
        kv_heads, _, size = self.kv_shapes[0]
        return BlockCache(slots, length, layers=len(self._layers), kv_heads=kv_heads, dim=size)

    @torch.inference_mode()
    def prefill(self, cache: BlockCache, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        lengths = [len(prompt) for prompt in prompts]
        if not max(lengths):
            return
        cache.reserve(max(lengths))
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        segments = torch.tensor([[start, length, 0, 0] for start, length in zip(starts, lengths, strict=True)])
        cos, sin = self._angles(torch.cat([torch.arange(length) for length in lengths]))
        slots = [cache.slots_of(own) for own in rows]
        x = self.decoder.embed_tokens(torch.tensor([token for prompt in prompts for token in prompt]))
        for number, layer in enumerate(self.decoder.layers):
            shape, *weights = whole(layer, bf16=self._bf16)  # type: ignore[misc]
            if number + 1 < len(self._layers):
                x, qkv = layer_and_keys(x, cos, sin, segments, shape, *weights)
            else:  # nobody reads what the last layer makes of a prompt
                qkv, _ = attention_inputs(x, shape, *weights)
            for start, length, own in zip(starts, lengths, slots, strict=True):
                part = slice(start, start + length)
                cache_prompt(cache, number, qkv[part], cos[part], sin[part], own, heads=self._heads)

    @torch.inference_mode()
    def decode(self, cache: BlockCache, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        cache.reserve(longest)
        x, angles = self.decoder.embed_tokens(tokens), self._table(longest)
        sizes = {"heads": self._heads, "eps": self._eps, "scale": self._scale}
        decode_layers(x, self._layers, cache, angles, positions, **sizes)
        normed = normalised(x, self.decoder.norm.weight, self._eps)
        return self._logits(normed) if self._head is None else product(normed, self._head)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, partly: bool = False) -> None:
        super().load_weights(weights, partly=partly)
        self._adopt()

    def _adopt(self) -> None:
        self._heads, self._scale = self.config.num_attention_heads, self.decoder.layers[0].self_attn.scaling
        self._eps = self.decoder.norm.variance_epsilon
        self._positions = (torch.empty(0), torch.empty(0))
        self._layers = [_arranged(layer, self._bf16) for layer in self.decoder.layers]
        whole = self._head_bias is None and len(self._head_weight) % TILE == 0
        self._head = panels(self._head_weight) if whole else None

    def _table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions up to a length, [at least length, dim] each."""
        if length > len(self._positions[0]):
            self._positions = self._angles(torch.arange(max(length, 2 * len(self._positions[0]), _ROOM)))
        return self._positions

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.decoder.rotary_emb(torch.empty(0), positions[None])
        return cos[0].contiguous(), sin[0].contiguous()


def _arranged(layer: Any, bf16: bool) -> DecodingLayer:
    """A copy of a layer's weights in the kernels' order."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
    biased = attention.q_proj.bias is not None
    out_bias = attention.o_proj.bias
    return DecodingLayer(
        input_norm=layer.input_layernorm.weight.data,
        qkv=panels(torch.cat([module.weight.data for module in inputs]), bf16=bf16),
        qkv_bias=torch.cat([module.bias.data for module in inputs]) if biased else None,
        out=panels(attention.o_proj.weight.data, bf16=bf16),
        out_bias=None if out_bias is None else out_bias.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate=panels(mlp.gate_proj.weight.data, bf16=bf16),
        up=panels(mlp.up_proj.weight.data, bf16=bf16),
        down=panels(mlp.down_proj.weight.data, bf16=bf16),
    )
