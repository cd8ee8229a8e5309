"""Prefill and decode steps through the model's own forward pass: for every full-attention model and device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from simplerl.engines._kv_cache import SlotCache
from simplerl.errors import EngineError


class TorchDecoder:
    """Runs the body of a `transformers` model on a `SlotCache`; logits exist for the last position only."""

    best_thread_count: int | None = 1
    """Threads that decode fastest: one, because operators this small mostly wait for Python's lock."""

    def __init__(self, model: PreTrainedModel) -> None:
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._body = model.get_decoder()
        self._kv_shapes = self._measure_kv_shapes()
        self._head: tuple[Tensor, Tensor | None] | None = None

    @property
    def rounds_to_bf16(self) -> bool:
        """True if the model itself is bfloat16."""
        return self._dtype == torch.bfloat16

    def refresh(self, head_weight: Tensor, head_bias: Tensor | None) -> None:
        """Take the float32 head, `head_weight` [V, d] and `head_bias` [V]; the body is the model's own."""
        self._head = head_weight, head_bias

    def new_cache(self, slots: int, length: int) -> SlotCache:
        """An empty KV cache of `slots` rows, with room for `length` tokens each before it first grows."""
        return SlotCache(slots, length, self._kv_shapes, dtype=self._dtype, device=self._device)

    @torch.inference_mode()
    def prefill(self, cache: SlotCache, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Fill fresh rows of the cache: prompt i, which may be empty, goes to each of `rows[i]`.

        Prompts are padded on the right and need no mask: attention is causal, so only padding sees padding.
        """
        longest = max(map(len, prompts))
        layers = self._keys_and_values(prompts, longest) if longest else []
        prompt_of_row = [i for i, prompt_rows in enumerate(rows) for _ in prompt_rows]
        source = torch.tensor(prompt_of_row, device=self._device)
        lengths = torch.tensor([len(prompts[i]) for i in prompt_of_row], device=self._device)
        targets = torch.tensor([row for prompt_rows in rows for row in prompt_rows], device=self._device)
        cache.fill(targets, lengths, [(keys[source], values[source]) for keys, values in layers], longest)

    def _keys_and_values(self, prompts: Sequence[Sequence[int]], longest: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [prompts, kv_heads, longest, head_dim], right-padded."""
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self._device)
        return self._run_body(ids)

    @torch.inference_mode()
    def decode(self, cache: SlotCache, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits float32 [rows, V] after one more token per row. `tokens` and `positions` are int64 [rows].

        `longest` is the largest position plus one.
        """
        assert self._head is not None, "call refresh first"
        hidden = self._body(
            input_ids=tokens[:, None],
            attention_mask=cache.begin_step(positions, longest),
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return torch.nn.functional.linear(hidden[:, -1].float(), *self._head)

    @torch.inference_mode()
    def _measure_kv_shapes(self) -> list[tuple[int, int, int]]:
        """(kv_heads, key_dim, value_dim) of each layer, from a run: configurations name them in many ways."""
        layers = self._run_body(torch.tensor([[0, 1]], device=self._device))
        shapes = [(keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in layers]
        if len({kv_heads for kv_heads, _, _ in shapes}) != 1:
            raise EngineError(
                f"the embedded engine needs the same number of key heads in every layer; (kv_heads, key_dim, "
                f"value_dim) are {shapes}. Use another engine"
            )
        return shapes

    def _run_body(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer for `ids` [n, T]: [n, kv_heads, T, head_dim]."""
        cache = DynamicCache()
        self._body(input_ids=ids, past_key_values=cache, use_cache=True)
        found = []
        for layer in cache.layers:
            assert isinstance(layer, CacheLayerMixin)
            keys, values = layer.keys, layer.values
            assert keys is not None and values is not None
            found.append((keys, values))
        return found
