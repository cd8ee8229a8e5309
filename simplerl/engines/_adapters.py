"""Low-rank adapters (arXiv:2106.09685) for an engine that decodes full matrices: adapters are merged into them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from simplerl.config import LoraConfig
from simplerl.errors import EngineError

A, B = ".lora_A.weight", ".lora_B.weight"


class Adapters:
    """Merges adapters into the matrices of a model's folder.

    The matrices are read when adapters first arrive, and kept: every merge starts from the matrices without adapters.
    """

    def __init__(self, model_path: str, config: LoraConfig, device: torch.device, trust_remote_code: bool) -> None:
        self._path, self._device, self._trust_remote_code = model_path, device, trust_remote_code
        self._scale = config.alpha / config.rank
        self._base: dict[str, Tensor] = {}

    def merge(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The adapted matrices W + alpha / rank * B A by their names, float32 [out, in], one at a time.

        Raises `EngineError` for an adapter without its other half, for an unknown matrix, and for other matrices than
        the first time.
        """
        pairs = pair_adapters(weights)
        self._base = self._base or self._read_base(pairs)
        if pairs.keys() != self._base.keys():
            raise EngineError(f"adapters have changed: {sorted(pairs.keys() ^ self._base.keys())[:3]}")
        return ((f"{name}.weight", self._merge_one(name, *pair)) for name, pair in pairs.items())

    def _merge_one(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        weight, a, b = (tensor.to(self._device).float() for tensor in (self._base[name], a, b))
        return weight + (b @ a) * self._scale

    def _read_base(self, names: Collection[str]) -> dict[str, Tensor]:
        """The matrices without adapters, in the dtype in which they are stored, on the CPU."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            self._path, dtype="auto", trust_remote_code=self._trust_remote_code, use_safetensors=True
        )
        own = {name.removesuffix(".weight"): weight.detach() for name, weight in model.named_parameters()}
        if unknown := sorted(set(names) - own.keys()):
            raise EngineError(f"adapters of {unknown[:3]}: {self._path} has no such matrices")
        return {name: own[name] for name in names}


def pair_adapters(weights: Iterator[tuple[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A [rank, in], B [out, rank]) by the name of the matrix they adapt. Raises `EngineError` if one is missing."""
    given = {name: tensor.detach() for name, tensor in weights}
    names = list(dict.fromkeys(name.removesuffix(A).removesuffix(B) for name in given))
    if not given or given.keys() != {name + end for name in names for end in (A, B)}:
        raise EngineError(f"an engine with model.lora takes pairs of adapters; it got {sorted(given)[:4]}")
    return {name: (given[name + A], given[name + B]) for name in names}
