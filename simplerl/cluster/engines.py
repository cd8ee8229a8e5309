"""Several engines as one: requests are dealt out, what a lost engine left unfinished goes to the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.ray import Actor
from simplerl.cluster.transfer import ClusterWeights, ObjectStoreWeights
from simplerl.config import ClusterConfig
from simplerl.engines.base import Engine, Receiver, Weights
from simplerl.errors import ClusterError, EngineError, InputLost, WorkerLost
from simplerl.types import Metrics, Request, Rollout

PAUSE = 0.05
"""Seconds of finished rollouts that are handed over at once."""


class EngineWorker:
    """An engine in a process of its own."""

    engine: Engine

    def begin(self, make: Callable[[], Engine]) -> None:
        """Builds the engine; not when the process begins, so that it can say meanwhile that it lives."""
        self.engine = make()

    def load_weights(self, version: int, *chunks: dict[str, Any]) -> None:
        self.engine.load_weights((pair for chunk in chunks for pair in chunk.items()), version)

    def init_transfer(self, how: Mapping[str, Any]) -> None:
        self._receiver.init_transfer(how)

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._receiver.begin_update(shapes)

    def receive_weights(self, what: Mapping[str, Any]) -> None:
        self._receiver.receive_weights(what)

    def finish_update(self, version: int) -> None:
        self._receiver.finish_update(version)

    @property
    def _receiver(self) -> Receiver:
        return cast("Receiver", self.engine)

    def sleep(self) -> None:
        self.engine.sleep()

    def answer(self, requests: Sequence[Request]) -> Iterator[list[Rollout]]:
        finished, handed = list[Rollout](), time.monotonic()
        for rollout in self.engine.submit(requests):
            finished.append(rollout)
            if time.monotonic() - handed > PAUSE:
                yield finished
                finished, handed = [], time.monotonic()
        yield finished


class RemoteEngines(Engine):
    """An `Engine` of several. Which engine answers a request depends on its place alone, unless one is lost."""

    def __init__(self, make: Callable[[], Engine], config: ClusterConfig, place: Placement) -> None:
        """Begins `config.engines`, each what `make` gives; raises what that raises."""
        self._make, self._config, self._place = make, config, place
        self._weights: tuple[int, ClusterWeights] | None = None
        self._asleep = False
        self._workers = self._begin(range(config.engines))
        self.faults: Metrics = {"cluster/engines_lost": 0.0, "cluster/requests_moved": 0.0}
        self._events: list[str] = []

    def _begin(self, numbers: Iterable[int]) -> list[Actor]:
        workers = ray.begun([Actor(EngineWorker, self._config, self._place.engine(number)) for number in numbers])
        ray.all_of(workers, "begin", self._make)
        return workers

    def load_weights(self, weights: Weights, version: int) -> None:
        """Replace every engine's weights; an engine lost meanwhile is restarted with them.

        Raises `InputLost` if the learner was lost with its weights.
        """
        self._asleep = False
        if not isinstance(weights, ClusterWeights):
            weights = ObjectStoreWeights.put(weights)
        if weights.needs_every_engine:
            self._weights = None
            for number in ray.lost(self._workers):
                self._replace(number, WorkerLost("it does not answer"))
        self._weights = version, weights
        for number, error in weights.send(self._workers, version).items():
            self._replace(number, error)

    def sleep(self) -> None:
        """Lets every engine sleep; one that is lost meanwhile is begun anew and sleeps too."""
        if not self._asleep:
            self._asleep = True
            asked = [worker.call("sleep") for worker in self._workers]
            for number, reference in enumerate(asked):
                try:
                    ray.answer(self._workers[number], reference)
                except WorkerLost as error:
                    self._replace(number, error)

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Yields each rollout as it finishes, each exactly once."""
        if len({request.id for request in requests}) < len(requests):
            raise EngineError("two requests have the same id; ids must differ")
        return self._run(list(requests))

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()

    def metrics(self) -> Metrics:
        """What was lost and made good since these engines were begun."""
        return dict(self.faults)

    def take_events(self) -> list[str]:
        """What was lost and made good, in words, since this was last asked."""
        events, self._events = self._events, []
        return events

    def _run(self, requests: list[Request]) -> Iterator[Rollout]:
        open_requests = {request.id: request for request in requests}
        count = len(self._workers)
        cuts = [len(requests) * number // count for number in range(count + 1)]
        running = {
            self._workers[n].stream("answer", requests[start:end]): (n, requests[start:end])
            for n, (start, end) in enumerate(pairwise(cuts))
            if start < end
        }
        while running:
            done = ray.ready(list(running), self._config.heartbeat_timeout)
            if not done:
                gone = ray.lost(self._workers)
                done = [stream for stream, (number, _) in running.items() if number in gone]
            for stream in done:
                number, _ = running[stream]
                try:
                    finished = ray.get(next(stream))
                except StopIteration:
                    del running[stream]
                    continue
                except WorkerLost as error:
                    self._move(running, number, open_requests, error)
                    break
                for rollout in finished:
                    if open_requests.pop(rollout.request_id, None) is not None:
                        yield rollout
        if open_requests:
            raise EngineError(
                f"{len(open_requests)} requests were never finished, the first is {next(iter(open_requests))}"
            )

    def _move(self, running: dict[Any, Any], number: int, open_requests: dict[str, Request], error: WorkerLost) -> None:
        """Begins a lost engine anew, and deals what it left unfinished out among all."""
        left = [r for n, share in running.values() if n == number for r in share if r.id in open_requests]
        for stream in [stream for stream, (n, _) in running.items() if n == number]:
            del running[stream]
        self._replace(number, error)
        self.faults["cluster/requests_moved"] += len(left)
        self._events.append(f"{len(left)} requests that engine {number} left unfinished go to all engines")
        for worker in range(len(self._workers)):
            share = left[worker :: len(self._workers)]
            if share:
                running[self._workers[worker].stream("answer", share)] = (worker, share)

    def _replace(self, number: int, error: WorkerLost) -> None:
        """Begins an engine anew, as often as it takes and `cluster.restarts` allows."""
        while True:
            self.faults["cluster/engines_lost"] += 1
            if self.faults["cluster/engines_lost"] > self._config.restarts:
                raise ClusterError(
                    f"engine {number} is lost ({error}), and cluster.restarts={self._config.restarts} allows no more; "
                    "look for out-of-memory kills on its node"
                ) from error
            self._events.append(f"engine {number} of {len(self._workers)} is lost ({error}); begun anew")
            self._workers[number].kill()
            try:
                (self._workers[number],) = self._begin([number])
                if self._weights is not None:
                    version, weights = self._weights
                    weights.resend(self._workers[number], version)
                if self._asleep:
                    ray.answer(self._workers[number], self._workers[number].call("sleep"))
                return
            except InputLost:
                raise
            except WorkerLost as again:
                error = again
