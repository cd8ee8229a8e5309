"""An engine's own copy of a causal language model: prompts in, next-token logits out, weights replaced in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from simplerl.engines import _attention
from simplerl.engines._kv_cache import SlotCache
from simplerl.errors import EngineError


class CausalModel:
    """A decoder and its head, run apart so that logits exist for the last position only, and in float32."""

    cpu_threads: int | None = 1
    """How many threads it is best decoded in; None is one per core. Python's lock makes several of these wait."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.decoder = model.get_decoder()
        self.config = model.config.get_text_config()
        self.device, self.dtype = next(model.parameters()).device, next(model.parameters()).dtype
        self._refuse_partial_attention()
        self._read_head()
        self._adopt()
        self.kv_shapes = self._probe_head()
        self._probe_decoding()

    @staticmethod
    def load(
        path: str, *, dtype: str, device: str, attention: str, trust_remote_code: bool, kernels: str
    ) -> CausalModel:
        """The model of a folder, run through the C kernels where the settings, the device and the model allow it."""
        from simplerl.engines._fused_model import FusedModel, decodable

        disable_progress_bar()  # it would be written into the live view
        wanted, kernels = getattr(torch, dtype), kernels if device == "cpu" and attention != "eager" else "torch"
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=wanted if kernels == "torch" else torch.float32,
            attn_implementation="eager" if attention == "eager" else _attention.NAME,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        if kernels == "auto" and decodable(model):
            return FusedModel(model, bf16=wanted == torch.bfloat16)
        return CausalModel(model.to(device, wanted))

    @property
    def rounds(self) -> bool:
        """Whether numbers are rounded to bfloat16 on their way."""
        return self.dtype == torch.bfloat16

    @property
    def vocabulary(self) -> int:
        return len(self._head_weight)

    @property
    def max_length(self) -> int | None:
        """Longest sequence the model was made for, if it says."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end_ids(self) -> set[int]:
        """The end tokens the model's generation settings name."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {ends}

    def new_cache(self, slots: int, length: int) -> Any:
        """An empty cache of so many rows, with room for so many tokens each before it first grows."""
        return SlotCache(slots, length, self.kv_shapes, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def prefill(self, cache: Any, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Fills fresh rows of the cache: prompt i, which may be empty, goes to each of `rows[i]`.

        No mask is needed: attention is causal, so padding on the right is seen by padding alone.
        """
        longest = max(map(len, prompts))
        layers = self._keys_and_values(prompts, longest) if longest else []
        source = torch.tensor([i for i, own in enumerate(rows) for _ in own], device=self.device)
        lengths = torch.tensor([len(prompts[i]) for i in source.tolist()], device=self.device)
        targets = torch.tensor([row for own in rows for row in own], device=self.device)
        cache.write(targets, lengths, [(keys[source], values[source]) for keys, values in layers], longest)

    def _keys_and_values(self, prompts: Sequence[Sequence[int]], longest: int) -> list[tuple[Tensor, Tensor]]:
        """Of every layer, [prompts, kv_heads, longest, head_dim], right-padded."""
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self.device)
        cache = DynamicCache()
        self.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def decode(self, cache: Any, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits after one more token per row, float32 [rows, V]. `tokens` and `positions` are [rows].

        `longest` is the largest position plus one, known without asking the device.
        """
        hidden = self.decoder(
            input_ids=tokens[:, None],
            attention_mask=cache.advance(positions, longest),
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.float(), self._head_weight, self._head_bias)

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, partly: bool = False) -> None:
        """Copies every weight in place, in this model's type. Of names tied to one tensor either will do.

        With `partly` those that are not given stay as they are.

        Raises `EngineError` that lists the names that are unknown, missing, of another shape, or tied but different.
        """
        own = self.model.state_dict()
        written: dict[int, str] = {}
        problems: list[str] = []
        for name, tensor in weights:
            problem = self._copy(own, written, name, tensor)
            problems += [problem] if problem else []
        if not partly:
            problems += [f"{name}: missing" for name, target in own.items() if target.data_ptr() not in written]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise EngineError(f"weights do not fit the engine's model, {len(problems)} of {len(own)}: {shown}")
        self._read_head()

    @staticmethod
    def _copy(own: dict[str, Tensor], written: dict[int, str], name: str, tensor: Tensor) -> str | None:
        """Copies one weight; says what is wrong with it, if anything is."""
        target = own.get(name)
        if target is None:
            return f"{name}: unknown"
        if target.shape != tensor.shape:
            return f"{name}: shape {tuple(tensor.shape)}, wants {tuple(target.shape)}"
        tensor = tensor.detach().to(device=target.device, dtype=target.dtype)
        twin = written.setdefault(target.data_ptr(), name)
        if twin != name and not torch.equal(target, tensor):
            return f"{name}: tied to {twin} but different"
        target.copy_(tensor)
        return None

    def _read_head(self) -> None:
        """The head in float32: the tensor itself, or a copy where the model's type is smaller."""
        head: Any = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        self._head_weight = head.weight.detach().float()
        self._head_bias = None if bias is None else bias.detach().float()

    def _adopt(self) -> None:
        """What a subclass makes of the model before it is tried."""

    def _refuse_partial_attention(self) -> None:
        kinds = sorted(set(getattr(self.config, "layer_types", None) or ()) - {"full_attention"})
        if kinds:
            raise EngineError(
                f"the embedded engine decodes full attention only; {self.config.model_type} has {', '.join(kinds)}. "
                "Use another engine"
            )

    @torch.inference_mode()
    def _probe_head(self) -> list[tuple[int, int, int]]:
        """(kv_heads, key_dim, value_dim) of each layer; refuses a model that does more to logits than its head."""
        ids, cache = torch.tensor([[0, 1]], device=self.device), DynamicCache()
        hidden = self.decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        logits = self.model.get_output_embeddings()(hidden)
        if not torch.allclose(self.model(input_ids=ids).logits, logits, rtol=1e-6, atol=1e-6, equal_nan=True):
            raise EngineError(
                f"the embedded engine cannot decode {self.config.model_type}: its logits are more than its head's "
                "output (scaled or capped). Use another engine"
            )
        shapes = [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]
        if len({heads for heads, _, _ in shapes}) != 1:
            raise EngineError(f"the embedded engine needs as many key heads in every layer; here they are {shapes}")
        return shapes

    @torch.inference_mode()
    def _probe_decoding(self) -> None:
        """Refuses a model whose step from a padded cache differs from one forward pass."""
        prompts, last = ((0, 1, 0), (1,)), torch.tensor([1, 0], device=self.device)
        cache, lengths = self.new_cache(2, 4), torch.tensor([3, 1], device=self.device)
        self.prefill(cache, prompts, [[0], [1]])
        stepped = self.decode(cache, last, lengths, 4)
        whole = [torch.tensor([[*p, t]], device=self.device) for p, t in zip(prompts, last.tolist(), strict=True)]
        expected = torch.cat([self.model(input_ids=ids).logits[:, -1] for ids in whole]).float()
        allowed = (0.1 if self.rounds else 1e-3) * max(1.0, float(expected.abs().max()))
        if (stepped - expected).abs().max() > allowed:
            raise EngineError(
                f"the embedded engine cannot decode {self.config.model_type}: a step from the cache differs from a "
                f"full forward pass by {float((stepped - expected).abs().max()):.3g} in a logit. Use another engine"
            )
