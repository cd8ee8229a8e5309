"""Tiny random models, a character tokenizer and requests for the engine's tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from simplerl.engines import embedded
from simplerl.engines.base import Engine, Weights
from simplerl.types import Problem, Prompt, Request, Rollout, Sampling, Verdict
from simplerl.verifiers.base import Verifier

SPECIAL = ("<pad>", "<eos>", "<end>")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*/=() <>#."
VOCABULARY = len(SPECIAL) + len(LETTERS)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, after <pad> 0, <eos> 1 and <end> 2."""
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*SPECIAL, *LETTERS])}, unk_token="<pad>"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=["<end>"]
    )


def model(family: str = "qwen2", *, tied: bool = False, scale: float = 0.3, seed: int = 0, **more: Any) -> Any:
    """A random model whose distributions are neither flat nor certain."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": scale,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **more,
    }
    made = Qwen2ForCausalLM(Qwen2Config(**settings)) if family == "qwen2" else LlamaForCausalLM(LlamaConfig(**settings))
    return made.eval()


def save(made: Any, folder: Path) -> str:
    made.save_pretrained(folder)
    return str(folder)


def load(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def engine(
    folder: str, *, dtype: str = "float32", attention: str = "sdpa", kernels: str = "auto", **settings: Any
) -> Any:
    config, how = embedded.Config(**settings), {"attention": attention, "kernels": kernels}
    return embedded.build(config, folder, tokenizer(), dtype=dtype, device="cpu", **how)


def slow_engine(folder: str, seconds: float) -> Any:
    time.sleep(seconds)
    return engine(folder)


class PacedEngine(Engine):
    """A real one that hands a response over every `seconds`, so that one that is lost has some left."""

    def __init__(self, folder: str, *, seconds: float, **settings: Any) -> None:
        self._engine, self._seconds = engine(folder, **settings), seconds

    def load_weights(self, weights: Weights, version: int) -> None:
        self._engine.load_weights(weights, version)

    def sleep(self) -> None:
        self._engine.sleep()

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        for rollout in self._engine.submit(requests):
            time.sleep(self._seconds)
            yield rollout


class Storer:
    """Stands for a learner that puts weights into a cluster's store."""

    def weights(self) -> list[Any]:
        from simplerl.cluster.transfer import ObjectStoreWeights

        return ObjectStoreWeights.put(iter(model(seed=4).state_dict().items())).references


def question(response: str, gold: str) -> tuple[Problem, Rollout]:
    """What a verifier is asked about a text and a gold answer."""
    problem = Problem("p", "?", gold)
    return problem, Rollout.recorded(problem, response)


class Judge(Verifier):
    """Takes its time, fails where it is asked to, and says in `method` which process it is."""

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        if rollout.text == "broken":
            raise ValueError("this judge is broken")
        time.sleep(0.005)
        label = "correct" if rollout.text == problem.answer else "wrong"
        return Verdict(label, rollout.text, str(os.getpid()))


class Seen(NamedTuple):
    node: str
    gpu: str | None


class Seer:
    """Says which GPU its process was given; as an engine, in the text of its answers."""

    def look(self) -> Seen:
        import ray

        return Seen(ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES"))

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        for each in requests:
            yield Rollout.single_turn(each.id, each.prompt, (1,), (0.0,), str(self.look()), "stop", 0)


def has_vllm() -> bool:
    return find_spec("vllm") is not None


def prompt(ids: list[int], name: str = "p") -> Prompt:
    return Prompt(problem=Problem(id=name, question="", answer=""), text="", token_ids=tuple(ids))


def request(name: str, ids: list[int], seed: int = 0, **sampling: Any) -> Request:
    return Request(id=name, prompt=prompt(ids, name), sampling=Sampling(**{"max_tokens": 24, **sampling}), seed=seed)


def prompts(number: int, *, shortest: int = 1, longest: int = 12, seed: int = 0) -> list[list[int]]:
    """Random prompts of different lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (number,), generator=generator).tolist()
    return [torch.randint(len(SPECIAL), VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
