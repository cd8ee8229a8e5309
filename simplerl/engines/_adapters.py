"""Low-rank adapters (arXiv:2106.09685) in an engine that decodes whole matrices: it merges what it is handed."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from simplerl.config import LoraConfig
from simplerl.errors import EngineError

A, B = ".lora_A.weight", ".lora_B.weight"


class Adapters:
    """Merges adapters into the matrices of a model's folder, which are read when adapters first come, and kept."""

    def __init__(self, model_path: str, config: LoraConfig, device: torch.device, trust_remote_code: bool) -> None:
        self._path, self._device, self._trust = model_path, device, trust_remote_code
        self._scale = config.alpha / config.rank
        self._base: dict[str, Tensor] = {}

    def merged(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The adapted matrices W + alpha / rank * B A by their names, float32 [out, in], one at a time.

        Raises `EngineError` for adapters that are incomplete, of an unknown matrix, or of others than before.
        """
        pairs = factors(weights)
        self._base = self._base or self._read(pairs)
        if pairs.keys() != self._base.keys():
            raise EngineError(f"adapters have changed: {sorted(pairs.keys() ^ self._base.keys())[:3]}")
        return ((f"{name}.weight", self._merge(name, *pair)) for name, pair in pairs.items())

    def _merge(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        weight, a, b = (tensor.to(self._device).float() for tensor in (self._base[name], a, b))
        return weight + (b @ a) * self._scale

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        """The matrices as they are without adapters, in the type they are stored in, on the CPU."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            self._path, dtype="auto", trust_remote_code=self._trust, use_safetensors=True
        )
        own = {name.removesuffix(".weight"): weight.detach() for name, weight in model.named_parameters()}
        if unknown := sorted(set(names) - own.keys()):
            raise EngineError(f"adapters of {unknown[:3]}, which {self._path} has not")
        return {name: own[name] for name in names}


def factors(weights: Iterator[tuple[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """By the matrix that they adapt: A [rank, in] and B [out, rank]. Raises `EngineError` where one is missing."""
    given = {name: tensor.detach() for name, tensor in weights}
    names = list(dict.fromkeys(name.removesuffix(A).removesuffix(B) for name in given))
    if not given or given.keys() != {name + end for name in names for end in (A, B)}:
        raise EngineError(f"an engine with model.lora takes pairs of adapters; it was handed {sorted(given)[:4]}")
    return {name: (given[name + A], given[name + B]) for name in names}
