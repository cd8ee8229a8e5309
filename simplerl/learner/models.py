"""The models a learner runs: policy and value, both around an ordinary `transformers` causal language model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from simplerl.batch.layouts import Layout
from simplerl.config import ModelConfig
from simplerl.cpu import fuse_for_training
from simplerl.learner.attention import PACKED
from simplerl.losses.logprobs import token_logprobs


def resolve_model_path(path: str) -> str:
    """The folder of the embedded base model for its name; anything else as it is."""
    from importlib import resources

    return str(resources.files("simplerl") / "assets" / path) if path == "tiny-math-base" else path


def load_causal_lm(config: ModelConfig) -> PreTrainedModel:
    """The base model with float32 master weights; it can be run on packed sequences unless its attention is eager."""
    disable_progress_bar()  # it would be written into the live view
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model_path(config.path),
        dtype=torch.float32,
        attn_implementation=PACKED if config.attention == "sdpa" else config.attention,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    model.config.use_cache = False
    if config.gradient_checkpointing:
        # transformers 5.23 renamed it; releases before know the old name only.
        old_name = model.gradient_checkpointing_enable
        getattr(model, "activation_checkpointing_enable", old_name)({"use_reentrant": False})
    return cast(PreTrainedModel, model.train().requires_grad_(True))


def fused(model: PreTrainedModel, config: ModelConfig, device: torch.device) -> bool:
    """Let the model run through the C kernels if settings, device and model allow it; returns True if it does."""
    wanted = config.kernels == "auto" and config.attention == "sdpa" and device.type == "cpu"
    return wanted and fuse_for_training(model)


def silence_dropout(model: nn.Module) -> None:
    """Training mode without dropout: gradient checkpointing needs the mode, ratios of 1 need the silence."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def hidden_states(body: nn.Module, layout: Layout) -> Tensor:
    """The body's last states where response tokens are predicted from: [R, H]."""
    packed: dict[str, Any] = {}
    if layout.segments is not None:
        packed = {"segments": layout.segments, "position_ids": layout.positions}
    elif layout.cu_seqlens is not None:
        longest = int(layout.cu_seqlens.diff().max())
        packed = {"cu_seq_lens_q": layout.cu_seqlens, "cu_seq_lens_k": layout.cu_seqlens}
        packed |= {"max_length_q": longest, "max_length_k": longest, "position_ids": layout.positions}
    hidden = body(input_ids=layout.ids, use_cache=False, **packed).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, layout.logit_positions)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that `transformers` declares as not to be split: one per decoder layer."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


class PolicyModel(nn.Module):
    """Per-token log-probs and entropy of given responses; logits never leave it."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        silence_dropout(causal_lm)
        self.causal_lm = causal_lm

    def forward(self, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the response tokens, float32 [R]."""
        states = hidden_states(self.causal_lm.get_decoder(), layout)
        weight = cast(nn.Linear, self.causal_lm.get_output_embeddings()).weight
        return token_logprobs(states, weight, layout.targets, temperature=temperature)


class ValueModel(nn.Module):
    """A body like the policy's with a linear head: the value of the state before each response token.

    The head starts at zero, so the first values are exactly 0.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        silence_dropout(causal_lm)
        self.body = causal_lm.get_decoder()
        self.head = nn.Linear(causal_lm.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, layout: Layout) -> Tensor:
        """Values, float32 [R]."""
        states = hidden_states(self.body, layout)
        with torch.autocast(states.device.type, enabled=False):
            return self.head(states.float()).squeeze(-1)
