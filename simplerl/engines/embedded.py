"""The embedded engine: decodes batches with a KV cache in this process, for every full-attention model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from simplerl.config import LoraConfig
from simplerl.engines.base import EngineConfig

if TYPE_CHECKING:
    from simplerl.engines._torch_engine import TorchEngine


class Config(EngineConfig):
    """Settings of the embedded engine."""

    name: Literal["embedded"] = "embedded"

    max_batch: int = Field(default=256, ge=1)
    """Sequences decoded at once. More are faster and need a larger KV cache."""

    prefill_tokens: int = Field(default=16384, ge=1)
    """Prompt tokens of one prefill, padding included. It bounds memory and does not change results; lower it if a
    prefill runs out of memory."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Threads that decode side by side, each with its share of the batch, of `max_batch` and of the cores. Empty: one
    per core on a CPU, 8 at most, and one on a GPU or without the C kernels. Results depend on it by rounding alone."""


def build(
    config: Config,
    model_path: str,
    tokenizer: Any,
    *,
    dtype: str,
    device: str,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    kernels: str = "auto",
    lora: LoraConfig | None = None,
) -> TorchEngine:
    """An engine with its own copy of the model in `model_path`, a `transformers` folder.

    `dtype` is "float32" or "bfloat16". `attention` is "sdpa" or "eager"; "flash_attention_2" runs as sdpa, because
    rows of different lengths need a mask. `kernels` "auto" uses the C kernels if they are available and support the
    model, "torch" never. With `lora` weights arrive as adapters and are merged. Raises `EngineError` for a model that
    this engine cannot decode correctly.
    """
    # Not at the top: reading settings must not load torch.
    from simplerl.cpu import thread_count
    from simplerl.engines._adapters import Adapters
    from simplerl.engines._causal_model import load_causal_model
    from simplerl.engines._torch_engine import TorchEngine

    model = load_causal_model(
        model_path,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
        kernels=kernels,
    )
    return TorchEngine(
        model,
        tokenizer,
        max_batch=config.max_batch,
        prefill_tokens=config.prefill_tokens,
        cpu_threads=thread_count(model.device, config.cpu_threads or model.best_thread_count),
        adapters=None if lora is None else Adapters(model_path, lora, model.device, trust_remote_code),
    )
