"""Engines and ranks without a model, many in one process: what a driver talks to when only the driver is measured.

Real are `RemoteEngines`, `RemoteLearner`, the bodies of the workers, Ray, and the number and size of what is sent.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from simplerl.batch.batch import ScoredBatch
from simplerl.cluster.engines import SEND_INTERVAL, EngineWorker
from simplerl.cluster.learner import RankWorker
from simplerl.cluster.ray import Actor, ActorOptions, get
from simplerl.config import ClusterConfig
from simplerl.types import Metrics, Problem, Prompt, Request, Rollout

VOCABULARY = 151_643
RESPONSE, LIMIT = 700, 3000
"""Mean and largest number of tokens of a response."""
POOL = 256
"""Different responses; making each anew would cost more than what is measured."""

counts: Counter[str] = Counter()
"""What this process has sent: calls, questions whether an actor lives, and bytes put into the store."""


# --- what is sent -----------------------------------------------------------------------------------------------------


class Parcel:
    """A value in serialised form, as large as the value: a process that ignores it need not unpack it."""

    def __init__(self, value: Any) -> None:
        self.content = np.frombuffer(pickle.dumps(value, protocol=5), dtype=np.uint8)
        counts["put"] += 1
        counts["bytes put"] += self.content.nbytes

    def open(self) -> Any:
        return pickle.loads(self.content.data)


class Weightless:
    """Stands for a tensor of weights: its name and size without its content."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def detach(self) -> Weightless:
        return self

    def cpu(self) -> Weightless:
        return self

    def numel(self) -> int:
        return math.prod(self.shape)

    def element_size(self) -> int:
        return 4


def weights_7b() -> Iterator[tuple[str, Any]]:
    """Names and shapes of Qwen2.5-Math-7B, float32."""
    hidden, inner, heads, vocabulary = 3584, 18_944, 512, 152_064
    yield "model.embed_tokens.weight", Weightless(vocabulary, hidden)
    for layer in range(28):
        name = f"model.layers.{layer}"
        for part, width in (("q", hidden), ("k", heads), ("v", heads)):
            yield f"{name}.self_attn.{part}_proj.weight", Weightless(width, hidden)
            yield f"{name}.self_attn.{part}_proj.bias", Weightless(width)
        yield f"{name}.self_attn.o_proj.weight", Weightless(hidden, hidden)
        yield f"{name}.mlp.gate_proj.weight", Weightless(inner, hidden)
        yield f"{name}.mlp.up_proj.weight", Weightless(inner, hidden)
        yield f"{name}.mlp.down_proj.weight", Weightless(hidden, inner)
        yield f"{name}.input_layernorm.weight", Weightless(hidden)
        yield f"{name}.post_attention_layernorm.weight", Weightless(hidden)
    yield "model.norm.weight", Weightless(hidden)
    yield "lm_head.weight", Weightless(vocabulary, hidden)


def words(generator: random.Random, characters: int) -> str:
    return "".join(generator.choices("etaoin shrdlu 0123456789+-=\\{}", k=characters))


def make_prompts(count: int, length: int) -> list[Prompt]:
    """Prompts of `length` tokens, four characters each."""
    generator, prompts = random.Random(0), []
    for number in range(count):
        problem = Problem(f"math-lvl3to5/{number}", words(generator, 200), "42", 3, "algebra", "math-lvl3to5")
        prompts.append(Prompt(problem, words(generator, 4 * length), ids(generator, length)))
    return prompts


def ids(generator: random.Random, count: int) -> tuple[int, ...]:
    return tuple(generator.randrange(VOCABULARY) for _ in range(count))


def make_pool() -> list[tuple[tuple[int, ...], tuple[float, ...], str]]:
    """Tokens, log-probs and text of responses, `RESPONSE` tokens on average."""
    generator, pool = random.Random(1), []
    for _ in range(POOL):
        size = max(1, min(LIMIT, round(generator.gammavariate(4, RESPONSE / 4))))
        logprobs = np.log(np.random.default_rng(size).random(size, dtype=np.float32) + 1e-6)
        pool.append((ids(generator, size), tuple(logprobs.tolist()), words(generator, 4 * size)))
    return pool


# --- who answers ------------------------------------------------------------------------------------------------------


class FakeEngine:
    """Answers with responses of a pool. They end evenly over so many seconds, waited for or not."""

    def __init__(self, pool: Sequence[Any], seconds: float, wait: bool) -> None:
        self.pool, self.seconds, self.wait = pool, seconds, wait
        self.version = 0

    def load_weights(self, weights: Iterator[tuple[str, Any]], version: int) -> None:
        self.version = version

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        return (rollout for _, rollouts in self.messages(requests) for rollout in rollouts)

    def close(self) -> None:
        pass

    def messages(self, requests: Sequence[Request]) -> Iterator[tuple[float, list[Rollout]]]:
        """When which rollouts would be handed over together, by the rule of `EngineWorker.submit`."""
        begun, handed, finished = time.monotonic(), 0.0, list[Rollout]()
        ends = sorted((random.Random(request.seed).random() * self.seconds, n) for n, request in enumerate(requests))
        for end, number in ends:
            if self.wait:
                time.sleep(max(0.0, begun + end - time.monotonic()))
            finished.append(self.answer(requests[number]))
            if end - handed > SEND_INTERVAL:
                yield end, finished
                finished, handed = [], end
        yield self.seconds, finished

    def answer(self, request: Request) -> Rollout:
        tokens, logprobs, text = self.pool[request.seed % POOL]
        reason = "length" if len(tokens) == LIMIT else "stop"
        return Rollout.single_turn(request.id, request.prompt, tokens, logprobs, text, reason, self.version)


class FakeLearner:
    """Returns what a rank returns, at once: the first in full, the others nothing."""

    temperature = 1.0

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def score(self, batch: Parcel, *, old_logprobs: bool) -> Any:
        if self.rank:
            return None
        opened = batch.open()
        old, ref, values = (torch.zeros(len(opened.sampled_logprobs)) for _ in range(3))
        return opened.extend(ScoredBatch, old_logprobs=old if old_logprobs else None, ref_logprobs=ref, values=values)

    def logprobs(self, batch: Parcel) -> Any:
        return None if self.rank else torch.zeros(len(batch.open().sampled_logprobs))

    def train(self, batch: Parcel, minibatches: Parcel, loss: Any, **how: Any) -> list[Metrics] | None:
        return None if self.rank else [{f"figure/{n}": 0.0 for n in range(28)} for _ in minibatches.open()]

    def weights(self) -> Iterator[tuple[str, Any]]:
        return weights_7b()


class FakeEngineWorker(EngineWorker):
    def submit(self, requests: Sequence[Request]) -> Iterator[list[Rollout]]:
        assert isinstance(self.engine, FakeEngine)
        for _, rollouts in self.engine.messages(requests):
            yield rollouts


class FakeRankWorker(RankWorker):
    def join(self, address: str, make: Callable[[Any], Any]) -> None:
        self.learner = FakeLearner(self.rank)


FAKES: dict[type, type] = {EngineWorker: FakeEngineWorker, RankWorker: FakeRankWorker}


class Host:
    """A process that is many workers."""

    def __init__(self) -> None:
        self.workers: dict[int, Any] = {}
        self.items = itertools.count()
        self.pool = make_pool()

    def begin(self, number: int, cls: type, arguments: tuple[Any, ...]) -> None:
        self.workers[number] = FAKES[cls](*arguments)

    def drop(self, number: int) -> None:
        self.workers.pop(number, None)

    def call(self, number: int, method: str, *arguments: Any, **named: Any) -> Any:
        if method == "build":  # all engines of a process share the pool
            return self.workers[number].build(lambda: arguments[0](self.pool))
        return getattr(self.workers[number], method)(*arguments, **named)

    def stream(self, number: int, method: str, *arguments: Any) -> Iterator[Any]:
        for item in getattr(self.workers[number], method)(*arguments):
            next(self.items)
            yield item

    def streamed(self) -> int:
        """Items sent since this was asked last."""
        count, self.items = next(self.items), itertools.count()
        return count

    def heartbeat(self) -> int:
        return os.getpid()


class Multiplexed(Actor):
    """An `Actor` that is one of many in a process. The processes are begun once, by `begin_hosts`."""

    hosts: list[Any] = []  # noqa: RUF012
    numbers = itertools.count()

    def __init__(self, cls: type, config: ClusterConfig, options: ActorOptions, *arguments: Any) -> None:
        self.heartbeat_timeout = config.heartbeat_timeout
        self._number = next(self.numbers)
        self._handle = self.hosts[self._number % len(self.hosts)]
        get(self._handle.begin.remote(self._number, cls, arguments))

    def submit(self, method: str, *arguments: Any, **named: Any) -> Any:
        counts["calls"] += 1
        return self._handle.call.remote(self._number, method, *arguments, **named)

    def stream(self, method: str, *arguments: Any) -> Any:
        counts["calls"] += 1
        return self._handle.stream.options(num_returns="streaming").remote(self._number, method, *arguments)

    def heartbeat(self) -> Any:
        counts["heartbeats"] += 1
        return super().heartbeat()

    def kill(self) -> None:
        self._handle.drop.remote(self._number)


def begin_hosts(processes: int, threads: int) -> None:
    """Processes that can do so many things at once each: as many as they hold workers."""
    import ray

    how: dict[str, Any] = {"num_cpus": 0, "max_concurrency": threads, "concurrency_groups": {"heartbeat": 1}}
    how["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    Multiplexed.hosts = [ray.remote(**how)(Host).remote() for _ in range(processes)]
    ray.get([host.streamed.remote() for host in Multiplexed.hosts])


def streamed() -> int:
    """Items that all processes sent since this was asked last."""
    import ray

    return sum(ray.get([host.streamed.remote() for host in Multiplexed.hosts]))
