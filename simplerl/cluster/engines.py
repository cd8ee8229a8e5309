"""Several engines that act as one: they share the requests, and take over the unfinished ones of a lost engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.ray import Actor, Stream
from simplerl.cluster.transfer import ClusterWeights, ObjectStoreWeights
from simplerl.config import ClusterConfig
from simplerl.engines.base import Engine, Receiver, Weights
from simplerl.errors import ClusterError, EngineError, InputLost, WorkerLost
from simplerl.types import Metrics, Request, Rollout

if TYPE_CHECKING:
    from torch import Tensor

SEND_INTERVAL = 0.05
"""Seconds of finished rollouts that a worker sends as one message."""


class EngineWorker:
    """An engine in its own process."""

    engine: Engine

    def build(self, build_engine: Callable[[], Engine]) -> None:
        """Build the engine. Not in `__init__`, because the process must send heartbeats while it loads a model."""
        self.engine = build_engine()

    def load_weights(self, version: int, *chunks: dict[str, Tensor]) -> None:
        self.engine.load_weights((pair for chunk in chunks for pair in chunk.items()), version)

    def init_transfer(self, settings: Mapping[str, Any]) -> None:
        self._receiver.init_transfer(settings)

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._receiver.begin_update(shapes)

    def receive_weights(self, description: Mapping[str, Any]) -> None:
        self._receiver.receive_weights(description)

    def finish_update(self, version: int) -> None:
        self._receiver.finish_update(version)

    @property
    def _receiver(self) -> Receiver:
        return cast("Receiver", self.engine)

    def sleep(self) -> None:
        self.engine.sleep()

    def submit(self, requests: Sequence[Request]) -> Iterator[list[Rollout]]:
        """Yield lists of rollouts as they finish."""
        finished, sent = list[Rollout](), time.monotonic()
        for rollout in self.engine.submit(requests):
            finished.append(rollout)
            if time.monotonic() - sent > SEND_INTERVAL:
                yield finished
                finished, sent = [], time.monotonic()
        yield finished


Running = dict[Stream, tuple[int, list[Request]]]
"""Streams of rollouts, each with its engine's number and the requests that the engine answers."""


class RemoteEngines(Engine):
    """Several engines behind the interface of one.

    Which engine answers a request depends on the request's position alone, unless an engine is lost.
    """

    def __init__(self, build: Callable[[], Engine], config: ClusterConfig, placement: Placement) -> None:
        """Start `config.engines` engines, each built by `build`; raises what `build` raises."""
        self._build, self._config, self._placement = build, config, placement
        self._weights: tuple[int, ClusterWeights] | None = None
        self._asleep = False
        self._workers = self._start_workers(range(config.engines))
        self.faults: Metrics = {"cluster/engines_lost": 0.0, "cluster/requests_moved": 0.0}
        self._events: list[str] = []

    def _start_workers(self, numbers: Iterable[int]) -> list[Actor]:
        config, placement = self._config, self._placement
        workers = [Actor(EngineWorker, config, placement.engine_options(number)) for number in numbers]
        ray.wait_until_started(workers)
        ray.call_all(workers, "build", self._build)
        return workers

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replace every engine's weights. An engine lost meanwhile is restarted with them.

        Raises `InputLost` if the learner was lost with its weights.
        """
        self._asleep = False
        if not isinstance(weights, ClusterWeights):
            weights = ObjectStoreWeights.put(weights)
        if weights.needs_every_engine:
            self._weights = None
            for number in ray.kill_unresponsive(self._workers):
                self._restart(number, WorkerLost(ray.no_heartbeat(self._workers[number])))
        self._weights = version, weights
        for number, error in weights.send(self._workers, version).items():
            self._restart(number, error)

    def sleep(self) -> None:
        """Put every engine to sleep. An engine lost meanwhile is restarted and put to sleep too."""
        if not self._asleep:
            self._asleep = True
            references = [worker.submit("sleep") for worker in self._workers]
            for number, reference in enumerate(references):
                try:
                    ray.result_of(self._workers[number], reference)
                except WorkerLost as error:
                    self._restart(number, error)

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yield each rollout as it finishes, exactly once."""
        if len({request.id for request in requests}) < len(requests):
            raise EngineError("two requests have the same id; ids must differ")
        return self._rollouts(list(requests))

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()

    def metrics(self) -> Metrics:
        """Engines lost, and requests moved to another engine, since the engines were built."""
        return dict(self.faults)

    def take_events(self) -> list[str]:
        """Losses and restarts since the last call, one line of text each."""
        events, self._events = self._events, []
        return events

    def _rollouts(self, requests: list[Request]) -> Iterator[Rollout]:
        unfinished = {request.id: request for request in requests}
        count = len(self._workers)
        bounds = [len(requests) * number // count for number in range(count + 1)]
        running: Running = {
            self._workers[number].stream("submit", requests[start:end]): (number, requests[start:end])
            for number, (start, end) in enumerate(pairwise(bounds))
            if start < end
        }
        while running:
            ready = ray.wait_any(list(running), self._config.heartbeat_timeout)
            if not ready:
                lost = ray.kill_unresponsive(self._workers)
                ready = [stream for stream, (number, _) in running.items() if number in lost]
            for stream in ready:
                number, _ = running[stream]
                try:
                    finished = ray.get(next(stream))
                except StopIteration:
                    del running[stream]
                    continue
                except WorkerLost as error:
                    self._move_requests(running, number, unfinished, error)
                    break
                for rollout in finished:
                    if unfinished.pop(rollout.request_id, None) is not None:
                        yield rollout
        if unfinished:
            raise EngineError(f"{len(unfinished)} requests never finished, the first is {next(iter(unfinished))}")

    def _move_requests(self, running: Running, number: int, unfinished: dict[str, Request], error: WorkerLost) -> None:
        """Restart a lost engine, and share its unfinished requests among all engines."""
        left = [r for n, requests in running.values() if n == number for r in requests if r.id in unfinished]
        for stream in [stream for stream, (n, _) in running.items() if n == number]:
            del running[stream]
        self._restart(number, error)
        self.faults["cluster/requests_moved"] += len(left)
        self._events.append(f"{len(left)} unfinished requests of engine {number} move to all engines")
        for worker in range(len(self._workers)):
            requests = left[worker :: len(self._workers)]
            if requests:
                running[self._workers[worker].stream("submit", requests)] = (worker, requests)

    def _restart(self, number: int, error: WorkerLost) -> None:
        """Restart an engine until it stays alive, at most `cluster.restarts` times in all."""
        while True:
            self.faults["cluster/engines_lost"] += 1
            if self.faults["cluster/engines_lost"] > self._config.restarts:
                raise ClusterError(
                    f"engine {number} is lost ({error}), and cluster.restarts={self._config.restarts} allows no more "
                    "restarts; look for out-of-memory kills on its node"
                ) from error
            self._events.append(f"engine {number} of {len(self._workers)} is lost ({error}); restarting it")
            self._workers[number].kill()
            try:
                (self._workers[number],) = self._start_workers([number])
                if self._weights is not None:
                    version, weights = self._weights
                    weights.resend(self._workers[number], version)
                if self._asleep:
                    self._workers[number].call("sleep")
                return
            except InputLost:
                raise
            except WorkerLost as next_error:
                error = next_error
