"""Rollout batches sampled while the learner trains on earlier ones, by weights of a fixed age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from simplerl.rollouts.collect import Groups
from simplerl.types import GradedRollout, Phase


class Cancelled(Exception):
    """Nobody waits for this batch any more."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A rollout batch, and the seconds that sampling it took."""

    groups: Groups
    seconds: float = 0.0


class RolloutPrefetcher:
    """Batches under way, by their numbers, sampled one after the other in a thread."""

    def __init__(self, sample: Callable[[int, Phase], Groups]) -> None:
        self._sample = sample
        self._batches: dict[int, Future[Sampled]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._closing = threading.Event()

    def __contains__(self, number: int) -> bool:
        return number in self._batches

    def begin(self, number: int, before: Callable[[], None] | None = None) -> None:
        """Samples a batch as soon as those before it are there; `before` is called first, in the same thread."""
        self._batches[number] = self._thread.submit(self._run, number, before)

    def adopt(self, number: int, groups: Groups) -> None:
        """A batch that was sampled in an earlier session."""
        self._batches[number] = Future()
        self._batches[number].set_result(Sampled(groups))

    def wait(self, number: int) -> Sampled:
        """The batch, once it is there; raises what sampling it raised."""
        return self._batches[number].result()

    def forget(self, number: int) -> None:
        """The batch was trained on."""
        del self._batches[number]

    def settle(self) -> dict[int, Groups]:
        """Waits until nothing is being sampled; the batches that are there."""
        batches = sorted(self._batches.items())
        return {number: batch.result().groups for number, batch in batches if batch.exception() is None}

    def close(self) -> None:
        """Lets the thread end at its next response; what it was sampling is lost."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, number: int, before: Callable[[], None] | None) -> Sampled:
        begun = time.perf_counter()
        if before is not None:
            before()
        return Sampled(self._sample(number, self._phase), time.perf_counter() - begun)

    @contextmanager
    def _phase(self, name: str, total: int) -> Iterator[Callable[[GradedRollout], None]]:
        yield self._leave_if_closing

    def _leave_if_closing(self, graded: GradedRollout) -> None:
        if self._closing.is_set():
            raise Cancelled
