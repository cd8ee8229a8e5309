"""The embedded engine: batched decoding with a key-value cache, in this process, for any full-attention model."""

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
    """Sequences decoded at once."""

    prefill_tokens: int = Field(default=16384, ge=1)
    """Prompt tokens run through the model at once, padding included; it bounds memory, not results."""

    cpu_threads: int | None = Field(default=None, ge=1)
    """Parts of a batch decoded side by side, each in a thread with its share of the cores and of `max_batch`; empty:
    one per core on a CPU, 8 at most, and one on a GPU. Results depend on it by rounding alone."""


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

    `dtype` is "float32" or "bfloat16", `attention` "sdpa" or "eager"; "flash_attention_2" runs as sdpa, because rows
    of different lengths are decoded under a mask. `kernels` "auto" takes the C kernels where they are at hand and
    suit the model, "torch" never. With `lora` weights come as adapters, and are merged here. Raises `EngineError` for a
    model this engine cannot decode rightly.
    """
    from simplerl.cpu.threads import thread_count
    from simplerl.engines._adapters import Adapters
    from simplerl.engines._causal_model import CausalModel
    from simplerl.engines._torch_engine import TorchEngine

    model = CausalModel.load(
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
        cpu_threads=thread_count(model.device, config.cpu_threads or model.cpu_threads),
        adapters=None if lora is None else Adapters(model_path, lora, model.device, trust_remote_code),
    )
