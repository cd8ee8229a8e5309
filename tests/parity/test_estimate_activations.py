"""Estimated bytes that a layer saves for its gradient, against what autograd saves: equal to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from simplerl.batch.batch import collate
from simplerl.batch.layouts import Packed, Padded, Shared
from simplerl.config import LoraConfig, ModelConfig
from simplerl.cpu import kernels_available
from simplerl.estimate.activations import copied_weights, saved_per_token
from simplerl.estimate.execution import ExecutionMode
from simplerl.estimate.shapes import Shape
from simplerl.learner.lora import add_adapters
from simplerl.learner.models import PolicyModel, fused, load_causal_lm
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict

pytestmark = pytest.mark.parity

PROMPT, RESPONSE, SAMPLES, RANK = 16, 32, 2, 4


def folder(parent: Path, layers: int) -> str:
    """A model folder. All sizes are different, so that a wrong one shows."""
    path = parent / str(layers)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


def saved(path: str, layout: Any, settings: dict[str, Any], adapted: tuple[str, ...] | None) -> tuple[int, int]:
    """Bytes of all storages that a forward pass saves, without parameters, and its number of tokens."""
    config = ModelConfig(path=path, **settings)
    causal_lm = load_causal_lm(config)
    fused(causal_lm, config, torch.device("cpu"))
    if adapted is not None:
        add_adapters(causal_lm, LoraConfig(rank=RANK, targets=adapted))
    model = PolicyModel(causal_lm)
    prompt = Prompt(Problem("p", "q", "1"), "q", tuple(range(5, 5 + PROMPT)))
    rollout = Rollout.single_turn("r", prompt, (7,) * RESPONSE, (-1.0,) * RESPONSE, "", "stop", 0)
    laid_out = layout.lay_out(collate([[GradedRollout(rollout, Verdict("correct"), 1.0)] * SAMPLES]))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found.setdefault(place, tensor)
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half:
        model(laid_out, 1.0)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values()), laid_out.ids.numel()


@pytest.mark.parametrize("adapted", [None, ("q_proj", "v_proj", "down_proj"), ()], ids=["full", "some", "adapters"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernels", "attention", "layout"),
    [("torch", "sdpa", Padded), ("torch", "sdpa", Packed), ("torch", "eager", Padded), ("auto", "sdpa", Shared)],
    ids=["padded", "packed", "eager", "kernels"],
)
def test_bytes_that_a_layer_saves(
    tmp_path: Path, kernels: str, attention: str, layout: Any, dtype: str, adapted: tuple[str, ...] | None
) -> None:
    if kernels == "auto" and not kernels_available():
        pytest.skip("no C compiler")
    shape = Shape(96, 64, 1, 4, 2, 176, 16, True, True)
    targets = tuple(shape.matrices) if adapted == () else adapted
    settings = {"kernels": kernels, "attention": attention, "dtype": dtype}
    # With adapters the input of the first layer has no gradient. So this compares the third layer.
    (more, tokens), (less, _) = (saved(folder(tmp_path, n), layout, settings, targets) for n in (3, 2))
    rank = RANK if targets else 0
    mode = ExecutionMode(
        "cpu", dtype == "bfloat16", kernels == "auto", attention, False, targets, rank, cpu_threads=1, ranks=1
    )
    estimated = tokens * saved_per_token(shape, mode, PROMPT + RESPONSE) + copied_weights(shape, mode)
    adapters = 2 * mode.adapter_parameters(shape) if mode.bfloat16 else 0  # their cast copies, which are not estimated
    assert more - less == estimated + adapters
