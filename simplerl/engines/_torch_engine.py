"""The embedded engine: checks requests, decodes shares of them in threads, yields rollouts as they finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from simplerl.cpu import CPUThreads
from simplerl.engines._adapters import Adapters
from simplerl.engines._cache_sizes import FIRST_RESPONSE_ROOM
from simplerl.engines._causal_model import CausalModel
from simplerl.engines._checks import check_requests
from simplerl.engines._decoder import KVCache
from simplerl.engines._ends import Ends
from simplerl.engines._running_batch import RunningBatch
from simplerl.engines.base import ASLEEP, Engine, Weights
from simplerl.errors import EngineError
from simplerl.types import Request, Rollout


class TorchEngine(Engine):
    """An `Engine` that decodes in this process."""

    can_sleep = True

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Any,
        *,
        max_batch: int,
        prefill_tokens: int,
        cpu_threads: int = 1,
        adapters: Adapters | None = None,
    ) -> None:
        """Decode at most `max_batch` requests at once, shared between `cpu_threads` threads.

        `adapters` None: `load_weights` gets every weight of the model.
        """
        self._model, self._adapters = model, adapters
        self._ends = Ends(tokenizer, model.end_ids, model.vocabulary)
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._version: int | None = 0
        """Policy version of the weights. None: the last `load_weights` failed, so they are incomplete."""
        self._running = 0
        self._asleep = False
        self._cpu_threads = CPUThreads(cpu_threads)
        self._idle_caches: dict[int, KVCache] = {}
        """KV caches of the last `submit`, by thread index, for the next one."""

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yield each rollout as it finishes.

        A log-prob is that of the distribution its token was drawn from. At temperature 0 that distribution is certain,
        so the log-prob is that of temperature 1. Raises `EngineError` for a request that cannot run, and for logits
        that are not finite.
        """
        check_requests(requests, self._model.vocabulary, self._model.max_length)
        return self._run(list(requests))

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replace every weight, or with adapters the matrices that they change.

        Raises `EngineError` if the weights do not fit, and while rollouts are in flight.
        """
        if self._running:
            raise EngineError(f"load_weights(version={version}) while rollouts are in flight; finish or close them")
        self._version = None
        if self._adapters is None:
            self._model.load_weights(iter(weights))
        else:
            self._model.load_weights(self._adapters.merge(iter(weights)), partial=True)
        self._version, self._asleep = version, False

    def sleep(self) -> None:
        """Free the KV caches; the weights stay."""
        if self._running:
            raise EngineError("sleep while rollouts are in flight; finish or close them")
        self._idle_caches.clear()
        self._asleep = True

    def close(self) -> None:
        """Free the KV caches and end the threads; the model is freed with the engine."""
        self._idle_caches.clear()
        self._cpu_threads.close()

    def _run(self, requests: list[Request]) -> Iterator[Rollout]:
        if self._asleep:
            raise EngineError(ASLEEP)
        if self._version is None:
            raise EngineError("the engine's weights are incomplete since the last load_weights failed; load them again")
        if not requests:
            return
        self._running += 1
        try:
            # Fill the cache of token codes once, not in every thread.
            self._ends.codes(list({request.sampling.stop for request in requests}))
            yield from self._cpu_threads.merge(
                [self._run_share(index, share) for index, share in enumerate(self._split(requests))]
            )
        finally:
            self._running -= 1

    def _split(self, requests: list[Request]) -> list[list[Request]]:
        """Each thread's requests, in order: neighbours share a prompt, which one thread then prefills once."""
        count = min(self._cpu_threads.count, len(requests))
        boundaries = [len(requests) * index // count for index in range(count + 1)]
        return [requests[start:end] for start, end in pairwise(boundaries)]

    def _run_share(self, thread_index: int, requests: list[Request]) -> Iterator[Rollout]:
        """Yield the rollouts of one thread's requests."""
        assert self._version is not None
        slots = min(max(1, self._max_batch // self._cpu_threads.count), len(requests))
        cache = self._take_cache(thread_index, requests, slots)
        batch = RunningBatch(self._model, self._ends, requests, cache, slots, self._prefill_tokens, self._version)
        while batch.unfinished:
            yield from batch.step()
        # On a CPU fresh memory costs a tenth of a rollout in page faults; on a GPU the learner needs the memory.
        if self._model.device.type == "cpu":
            self._idle_caches[thread_index] = cache

    @torch.inference_mode()  # A cache that has grown is an inference tensor.
    def _take_cache(self, thread_index: int, requests: Sequence[Request], slots: int) -> KVCache:
        """An empty KV cache of at least `slots` rows: the idle one, or a new one.

        A cache becomes idle only after a `submit` without errors, so it has no NaN behind its mask.
        """
        idle = self._idle_caches.pop(thread_index, None)
        if idle is not None and idle.slots >= slots:
            idle.clear()
            return idle
        longest = max(len(request.prompt.token_ids) for request in requests)
        room = min(FIRST_RESPONSE_ROOM, max(request.sampling.max_tokens for request in requests))
        return self._model.new_cache(slots, longest + room)
