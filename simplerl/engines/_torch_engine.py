"""The embedded engine proper: requests are checked, dealt to lanes, and come back as rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from simplerl.cpu.threads import CPUThreads
from simplerl.engines._adapters import Adapters
from simplerl.engines._cache_sizes import FIRST_RESPONSE_ROOM
from simplerl.engines._causal_model import CausalModel
from simplerl.engines._checks import check_requests
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
        self._model, self._adapters = model, adapters
        self._ends = Ends(tokenizer, model.end_ids, model.vocabulary)
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._version: int | None = 0
        self._running = 0
        self._asleep = False
        self._lanes = CPUThreads(cpu_threads)
        self._kept: dict[int, Any] = {}

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yields each rollout as it finishes.

        The log-probs are those of the distribution a token was drawn from; at temperature 0, where that is a
        certainty, those of temperature 1. Raises `EngineError` for a request that cannot be run or whose logits are
        not finite.
        """
        check_requests(requests, self._model.vocabulary, self._model.max_length)
        return self._run(list(requests))

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replaces every weight, or with adapters what they change.

        Raises `EngineError` when they do not fit or while rollouts are in flight.
        """
        if self._running:
            raise EngineError(f"load_weights(version={version}) while rollouts are in flight; finish or close them")
        self._version = None
        if self._adapters is None:
            self._model.load_weights(iter(weights))
        else:
            self._model.load_weights(self._adapters.merged(iter(weights)), partly=True)
        self._version, self._asleep = version, False

    def sleep(self) -> None:
        """Frees the caches that are kept for the next rollouts; the weights stay."""
        if self._running:
            raise EngineError("sleep while rollouts are in flight; finish or close them")
        self._kept.clear()
        self._asleep = True

    def close(self) -> None:
        """Frees the caches; the model goes with the engine."""
        self._kept.clear()
        self._lanes.close()

    def _run(self, requests: list[Request]) -> Iterator[Rollout]:
        if self._asleep:
            raise EngineError(ASLEEP)
        if self._version is None:
            raise EngineError("the engine's weights are incomplete since the last load_weights failed; load them again")
        if not requests:
            return
        self._running += 1
        try:
            self._ends.table(list({request.sampling.stop for request in requests}))  # once, not in every lane
            yield from self._lanes.merge([self._lane(thread, own) for thread, own in enumerate(self._shares(requests))])
        finally:
            self._running -= 1

    def _shares(self, requests: list[Request]) -> list[list[Request]]:
        """Each lane's requests, in order: answers to one prompt stay together, so that it is prefilled once."""
        count = min(self._lanes.count, len(requests))
        cuts = [len(requests) * thread // count for thread in range(count + 1)]
        return [requests[start:end] for start, end in pairwise(cuts)]

    def _lane(self, thread: int, requests: list[Request]) -> Iterator[Rollout]:
        assert self._version is not None
        slots = min(max(1, self._max_batch // self._lanes.count), len(requests))
        cache = self._cache_for(thread, requests, slots)
        batch = RunningBatch(self._model, self._ends, requests, cache, slots, self._prefill_tokens, self._version)
        while batch.unfinished:
            yield from batch.step()
        # On a CPU fresh memory costs a tenth of a rollout in page faults; on a GPU the learner wants it back.
        if self._model.device.type == "cpu":
            self._kept[thread] = cache

    @torch.inference_mode()  # A cache that has grown is an inference tensor.
    def _cache_for(self, thread: int, requests: Sequence[Request], slots: int) -> Any:
        """An empty cache of at least so many slots: the one kept, or a new one.

        A cache is kept only from a submit that ended well, so no NaN hides behind its mask.
        """
        kept = self._kept.pop(thread, None)
        if kept is not None and kept.slots >= slots:
            kept.clear()
            return kept
        longest = max(len(request.prompt.token_ids) for request in requests)
        room = min(FIRST_RESPONSE_ROOM, max(request.sampling.max_tokens for request in requests))
        return self._model.new_cache(slots, longest + room)
