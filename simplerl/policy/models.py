"""The models a learner runs: policy and value, both around an ordinary `transformers` causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from simplerl.config import ModelConfig
from simplerl.functional.batch import Padded
from simplerl.functional.logprobs import token_logprobs


def resolve_model_path(path: str) -> str:
    """The folder of the embedded base model for its name; anything else as it is."""
    from importlib import resources

    return str(resources.files("simplerl") / "assets" / path) if path == "tiny-math-base" else path


def load_causal_lm(config: ModelConfig) -> PreTrainedModel:
    """The base model with float32 master weights, dropout off (log-probs must repeat)."""
    disable_progress_bar()  # it would be written into the live view
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model_path(config.path),
        dtype=torch.float32,
        attn_implementation=config.attention,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    model.config.use_cache = False
    if config.gradient_checkpointing:
        # transformers 5.23 renamed it; releases before know the old name only.
        old_name = model.gradient_checkpointing_enable
        getattr(model, "activation_checkpointing_enable", old_name)({"use_reentrant": False})
    return cast(PreTrainedModel, model.train().requires_grad_(True))


def silence_dropout(model: nn.Module) -> None:
    """Training mode without dropout: gradient checkpointing needs the mode, ratios of 1 need the silence."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class PolicyModel(nn.Module):
    """Per-token log-probs and entropy of given responses; logits never leave it."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        silence_dropout(causal_lm)
        self.causal_lm = causal_lm

    def forward(self, padded: Padded, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the response tokens, float32 [R]."""
        hidden = self.causal_lm.get_decoder()(input_ids=padded.ids, use_cache=False).last_hidden_state
        weight = cast(nn.Linear, self.causal_lm.get_output_embeddings()).weight
        states = hidden.flatten(0, 1).index_select(0, padded.where)
        return token_logprobs(states, weight, padded.targets, temperature=temperature)

    def save_pretrained(self, folder: Path) -> None:
        self.causal_lm.save_pretrained(folder, safe_serialization=True)


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

    def forward(self, padded: Padded) -> Tensor:
        """Values, float32 [R]."""
        hidden = self.body(input_ids=padded.ids, use_cache=False).last_hidden_state
        states = hidden.flatten(0, 1).index_select(0, padded.where)
        with torch.autocast(states.device.type, enabled=False):
            return self.head(states.float()).squeeze(-1)
