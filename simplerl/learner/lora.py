"""Low-rank adapters (arXiv:2106.09685) through `peft`, put into a `transformers` model in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from simplerl.config import LoraConfig
from simplerl.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, ADAPTER, NAME = ".base_layer.", ".lora_", "default"


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Puts adapters beside the chosen linear layers; they alone stay trainable, and at first change nothing.

    Raises `ConfigError` if a target is not a linear layer of the model, `DependencyError` without `peft`.
    """
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets(model, config)
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=NAME)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model is what it was before it got adapters; they and what is trained of them come back unchanged."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """The last parts of the names of the layers that get adapters."""
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    unknown = sorted(set(config.targets) - linear)
    if unknown:
        raise ConfigError(
            f"model.lora.targets: {', '.join(unknown)} is not a linear layer of this model; it has "
            f"{', '.join(sorted(linear))}"
        )
    return sorted(config.targets or linear)


def merged_weights(model: nn.Module, whole: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights under their `transformers` names, adapters added to what they adapt; tied ones once.

    `whole` gives all of a tensor that may be sharded.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in model.named_parameters():
        if ADAPTER in name:
            continue
        weight, layer = whole(parameter.detach()), layers.get(name.removesuffix(f"{BASE}weight"))
        if layer is not None and name.endswith(f"{BASE}weight"):
            a, b = (whole(factors[NAME].weight.detach()) for factors in (layer.lora_A, layer.lora_B))
            weight = weight + (b @ a) * layer.scaling[NAME]
        yield name.replace(BASE, "."), weight


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The adapters alone: of every adapted matrix `NAME.lora_A.weight` [rank, in], `NAME.lora_B.weight` [out, rank]."""
    for name, parameter in model.named_parameters():
        if ADAPTER in name:
            yield engine_name(name), parameter.detach()


def engine_name(name: str) -> str:
    """What engines call a weight of the learner's actor."""
    return name.removeprefix("causal_lm.").replace(f".{NAME}.", ".")


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise DependencyError(
            f"model.lora needs peft, which cannot be imported ({error}); pip install 'simplerl[lora]'"
        ) from error
    return peft
