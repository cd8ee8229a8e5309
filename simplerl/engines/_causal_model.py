"""The embedded engine's own copy of a causal language model: its weights, its head, and checks of its decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from simplerl.cpu import FusedDecoder, can_decode
from simplerl.engines import _attention
from simplerl.engines._decoder import Decoder, KVCache
from simplerl.engines._torch_decoder import TorchDecoder
from simplerl.errors import EngineError


def load_causal_model(
    path: str, *, dtype: str, device: str, attention: str, trust_remote_code: bool, kernels: str
) -> CausalModel:
    """Load a model from a `transformers` folder. Raises `EngineError` if the engine cannot decode it correctly."""
    disable_progress_bar()  # it would be written into the live view
    wanted: torch.dtype = getattr(torch, dtype)
    try_kernels = kernels == "auto" and device == "cpu" and attention != "eager"
    model = AutoModelForCausalLM.from_pretrained(
        path,
        # The kernels read float32 weights and round by themselves.
        dtype=torch.float32 if try_kernels else wanted,
        attn_implementation="eager" if attention == "eager" else _attention.NAME,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    model.eval().requires_grad_(False)
    refuse_partial_attention(model)
    if try_kernels and can_decode(model):
        return CausalModel(model, FusedDecoder(model, bf16=wanted == torch.bfloat16))
    cast(nn.Module, model).to(device, wanted)  # in place; `transformers` declares no arguments for it
    return CausalModel(model, TorchDecoder(model))


def refuse_partial_attention(model: PreTrainedModel) -> None:
    """Raise `EngineError` if a layer does not attend to all earlier tokens."""
    config = model.config.get_text_config()
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        raise EngineError(
            f"the embedded engine decodes full attention only; {config.model_type} has {', '.join(kinds)}. "
            "Use another engine"
        )


class CausalModel:
    """A model, its head in float32, and the decoder that runs it."""

    def __init__(self, model: PreTrainedModel, decoder: Decoder[Any]) -> None:
        """Raises `EngineError` if the decoder's logits differ from those of the model's own forward pass."""
        self.model, self._decoder = model, decoder
        self.config = model.config.get_text_config()
        self.device = next(model.parameters()).device
        self._refresh()
        self._check_head()
        self._check_decoding()

    @property
    def best_thread_count(self) -> int | None:
        """Threads that decode fastest side by side. None: one per core."""
        return self._decoder.best_thread_count

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        return len(self._head.weight)

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the model was made for. None: its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end_ids(self) -> set[int]:
        """End tokens of the model's generation settings."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {ends}

    def new_cache(self, slots: int, length: int) -> KVCache:
        """An empty KV cache of `slots` rows, with room for `length` tokens each before it first grows."""
        return self._decoder.new_cache(slots, length)

    def prefill(self, cache: KVCache, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        """Fill fresh rows of the cache: prompt i, which may be empty, goes to each of `rows[i]`."""
        self._decoder.prefill(cache, prompts, rows)

    def decode(self, cache: KVCache, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits float32 [rows, V] after one more token per row. `tokens` and `positions` are int64 [rows].

        `longest` is the largest position plus one: the caller knows it without a synchronisation with the device.
        """
        return self._decoder.decode(cache, tokens, positions, longest)

    # --- weights ------------------------------------------------------------------------------------------------------

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], *, partial: bool = False) -> None:
        """Copy every weight in place, in this model's dtype. A tied tensor may come under any of its names.

        With `partial` weights that are not given stay as they are.

        Raises `EngineError` that lists the names that are unknown, missing, of another shape, or tied but different.
        """
        own = self.model.state_dict()
        written: dict[int, str] = {}
        problems = [each for name, tensor in weights if (each := _copy_weight(own, written, name, tensor))]
        if not partial:
            problems += [f"{name}: missing" for name, target in own.items() if target.data_ptr() not in written]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise EngineError(f"weights do not fit the engine's model, {len(problems)} of {len(own)}: {shown}")
        self._refresh()

    def _refresh(self) -> None:
        """Hand the decoder the head in float32: the tensor itself, or a copy if the model's dtype is smaller."""
        bias = getattr(self._head, "bias", None)
        self._decoder.refresh(self._head.weight.detach().float(), None if bias is None else bias.detach().float())

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())

    # --- checks -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Refuse a model whose logits are more than its head's output."""
        ids = torch.tensor([[0, 1]], device=self.device)
        hidden = self.model.get_decoder()(input_ids=ids).last_hidden_state
        if not torch.allclose(
            self.model(input_ids=ids).logits, self._head(hidden), rtol=1e-6, atol=1e-6, equal_nan=True
        ):
            raise EngineError(
                f"the embedded engine cannot decode {self.config.model_type}: its logits are more than its head's "
                "output (scaled or capped). Use another engine"
            )

    @torch.inference_mode()
    def _check_decoding(self) -> None:
        """Refuse a model whose decode step from a padded KV cache differs from one forward pass."""
        prompts, last = ((0, 1, 0), (1,)), torch.tensor([1, 0], device=self.device)
        cache, lengths = self.new_cache(2, 4), torch.tensor([3, 1], device=self.device)
        self.prefill(cache, prompts, [[0], [1]])
        stepped = self.decode(cache, last, lengths, 4)
        full = [torch.tensor([[*p, t]], device=self.device) for p, t in zip(prompts, last.tolist(), strict=True)]
        expected = torch.cat([self.model(input_ids=ids).logits[:, -1] for ids in full]).float()
        difference = float((stepped - expected).abs().max())
        if difference > (0.1 if self._decoder.rounds_to_bf16 else 1e-3) * max(1.0, float(expected.abs().max())):
            raise EngineError(
                f"the embedded engine cannot decode {self.config.model_type}: a decode step differs from a full "
                f"forward pass by {difference:.3g} in a logit. Use another engine"
            )


def _copy_weight(own: dict[str, Tensor], written: dict[int, str], name: str, tensor: Tensor) -> str | None:
    """Copy one weight into the model's `own`. Returns what is wrong with it; None: nothing.

    `written` has the names of the tensors that were written, by their addresses.
    """
    target = own.get(name)
    if target is None:
        return f"{name}: unknown"
    if target.shape != tensor.shape:
        return f"{name}: shape {tuple(tensor.shape)}, wants {tuple(target.shape)}"
    tensor = tensor.detach().to(device=target.device, dtype=target.dtype)
    first_name = written.setdefault(target.data_ptr(), name)
    if first_name != name and not torch.equal(target, tensor):
        return f"{name}: tied to {first_name} but different"
    target.copy_(tensor)
    return None
