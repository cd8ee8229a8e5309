"""Prefill and decode steps of a Llama-family model through the kernels: on a CPU several times as fast as torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplerl.cpu.decoding import BlockCache, PanelWeights, decode_layers, multiply_panels, to_panels, write_prompt
from simplerl.cpu.layer import LayerShape, LayerWeights, layer_and_qkv, layer_qkv
from simplerl.cpu.llama import Layer, decoder_of, fused_layer, is_supported
from simplerl.cpu.ops import rms_norm_no_grad
from simplerl.cpu_sizes import TILE

# Length of the first table of cosines and sines.
_FIRST_POSITIONS = 64


def can_decode(model: nn.Module) -> bool:
    """True if `FusedDecoder` can decode this causal language model on this machine.

    It needs available kernels, a model of the Llama family, float32 weights, and sizes that fill whole panels.
    """
    return is_supported(model) and fused_layer(decoder_of(model).layers[0], bf16=False) is not None


class FusedDecoder:
    """Runs a model that `can_decode`; its logits differ from those of the model's own forward pass by rounding alone.

    With `bf16` the factors of products with a layer's weights are rounded to bfloat16, as in the learner; the model's
    weights are float32 either way. Call `refresh` before the first step, and again once weights have changed in place.
    """

    best_thread_count: int | None = None
    """Threads that decode fastest. None: one per core, because a kernel call releases Python's lock."""

    def __init__(self, model: nn.Module, *, bf16: bool) -> None:
        self.rounds_to_bf16 = bf16
        self._decoder = decoder_of(model)
        self._shape, weights = self._fused(self._decoder.layers[0])
        self._head_dim = len(weights.qkv) // (self._shape.heads + 2 * self._shape.kv_heads)
        self._layers: list[PanelWeights] = []
        self._head: tuple[Tensor, Tensor | None] | None = None
        self._head_panels: Tensor | None = None
        self._cos_sin = (torch.empty(0), torch.empty(0))

    def refresh(self, head_weight: Tensor, head_bias: Tensor | None) -> None:
        """Copy the model's weights into panels. The head is float32: `head_weight` [V, d], `head_bias` [V]."""
        self._layers = [_panel_weights(layer, bf16=self.rounds_to_bf16) for layer in self._decoder.layers]
        self._head = head_weight, head_bias
        fills_panels = head_bias is None and len(head_weight) % TILE == 0
        self._head_panels = to_panels(head_weight) if fills_panels else None

    def new_cache(self, slots: int, length: int) -> BlockCache:
        """An empty KV cache of `slots` rows, with room for `length` tokens each before it first grows."""
        layers = len(self._decoder.layers)
        return BlockCache(slots, length, layers=layers, kv_heads=self._shape.kv_heads, head_dim=self._head_dim)

    @torch.inference_mode()
    def prefill(self, cache: BlockCache, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Fill fresh rows of the cache: prompt i, which may be empty, goes to each of `rows[i]`."""
        lengths = [len(prompt) for prompt in prompts]
        if not max(lengths):
            return
        cache.reserve(max(lengths))
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        segments = torch.tensor([[start, length, 0, 0] for start, length in zip(starts, lengths, strict=True)])
        cos, sin = self._compute_cos_sin(torch.cat([torch.arange(length) for length in lengths]))
        slots = [cache.slots_of(prompt_rows) for prompt_rows in rows]
        x = self._decoder.embed_tokens(torch.tensor([token for prompt in prompts for token in prompt]))
        for index, layer in enumerate(self._decoder.layers):
            shape, weights = self._fused(layer)
            if index + 1 < len(self._decoder.layers):
                x, qkv = layer_and_qkv(x, cos, sin, segments, shape, weights)
            else:  # The last layer's output for a prompt is not used.
                qkv, _ = layer_qkv(x, shape, weights)
            for start, length, prompt_slots in zip(starts, lengths, slots, strict=True):
                own = slice(start, start + length)
                write_prompt(cache, index, qkv[own], cos[own], sin[own], prompt_slots, heads=shape.heads)

    @torch.inference_mode()
    def decode(self, cache: BlockCache, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits float32 [rows, V] after one more token per row. `tokens` and `positions` are int64 [rows].

        `longest` is the largest position plus one.
        """
        assert self._head is not None, "call refresh first"
        cache.reserve(longest)
        x, norm, shape = self._decoder.embed_tokens(tokens), self._decoder.norm, self._shape
        cos_sin = self._cos_sin_up_to(longest)
        eps, scale = norm.variance_epsilon, shape.scale
        decode_layers(x, self._layers, cache, cos_sin, positions, heads=shape.heads, eps=eps, scale=scale)
        normed = rms_norm_no_grad(x, norm.weight, eps)
        return (
            F.linear(normed, *self._head) if self._head_panels is None else multiply_panels(normed, self._head_panels)
        )

    def _fused(self, layer: Layer) -> tuple[LayerShape, LayerWeights]:
        fused = fused_layer(layer, bf16=self.rounds_to_bf16)
        assert fused is not None, "check can_decode first"
        return fused

    def _cos_sin_up_to(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions below `length`, and maybe of more, [positions, head_dim] each."""
        # Threads share the table: return the one that was checked, not one that another thread has set meanwhile.
        table = self._cos_sin
        if length > len(table[0]):
            table = self._compute_cos_sin(torch.arange(max(length, 2 * len(table[0]), _FIRST_POSITIONS)))
            self._cos_sin = table
        return table

    def _compute_cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._decoder.rotary_emb(torch.empty(0), positions[None])
        return cos[0].contiguous(), sin[0].contiguous()


def _panel_weights(layer: Layer, *, bf16: bool) -> PanelWeights:
    """A copy of a layer's weights in panels."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
    has_bias = attention.q_proj.bias is not None
    out_bias = attention.o_proj.bias
    return PanelWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=to_panels(torch.cat([module.weight.data for module in inputs]), bf16=bf16),
        qkv_bias=torch.cat([module.bias.data for module in inputs]) if has_bias else None,
        out=to_panels(attention.o_proj.weight.data, bf16=bf16),
        out_bias=None if out_bias is None else out_bias.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate=to_panels(mlp.gate_proj.weight.data, bf16=bf16),
        up=to_panels(mlp.up_proj.weight.data, bf16=bf16),
        down=to_panels(mlp.down_proj.weight.data, bf16=bf16),
    )
