"""Several verifiers that act as one, each in its own process. A lost verifier is restarted and judges again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.ray import Actor
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError, WorkerLost
from simplerl.types import Metrics, Problem, Rollout, Verdict
from simplerl.verifiers.base import Verifier

MAX_BATCH = 32
"""Responses per message to a process. A message takes longer than most verdicts, so waiting responses are batched."""

CLOSE_TIMEOUT = 30.0
"""Seconds that `close` waits for each thread."""


class VerifierWorker:
    """A verifier in its own process."""

    verifier: Verifier

    def build(self, build_verifier: Callable[[], Verifier]) -> None:
        self.verifier = build_verifier()

    def judge(self, responses: Sequence[tuple[Problem, Rollout]]) -> list[Verdict | Exception]:
        """The verdict on each response, or the exception that judging it raised."""
        return [_outcome(future) for future in [self._submit(*response) for response in responses]]

    def _submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        try:
            return self.verifier.submit(problem, rollout)
        except Exception as error:  # fails this response, not its batch
            future: Future[Verdict] = Future()
            future.set_exception(error)
            return future


def _outcome(future: Future[Verdict]) -> Verdict | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


@dataclass(frozen=True, slots=True)
class PendingVerdict:
    """A response to judge, and the future of its verdict."""

    problem: Problem
    rollout: Rollout
    future: Future[Verdict] = field(default_factory=Future)


class RemoteVerifier(Verifier):
    """Several verifiers behind the interface of one. One thread per process sends it responses and restarts it."""

    def __init__(self, build: Callable[[], Verifier], config: ClusterConfig, placement: Placement) -> None:
        """Start `config.verifiers` verifiers, each built by `build`; raises what `build` raises."""
        self._build, self._config, self._placement = build, config, placement
        self._queue: SimpleQueue[PendingVerdict | None] = SimpleQueue()
        self._closed, self._lock = False, Lock()
        self.faults: Metrics = {"cluster/verifiers_lost": 0.0}
        self._events: list[str] = []
        self._workers = self._start_workers(config.verifiers)
        self._threads = [Thread(target=self._serve, args=(n,), daemon=True) for n in range(config.verifiers)]
        for thread in self._threads:
            thread.start()

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        pending = PendingVerdict(problem, rollout)
        self._queue.put(pending)
        return pending.future

    def close(self) -> None:
        """Stop all processes and cancel the responses that wait."""
        self._closed = True
        for pending in self._take_waiting(self._queue.qsize()):
            pending.future.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT)

    def metrics(self) -> Metrics:
        """Verifiers lost since the verifiers were built."""
        return dict(self.faults)

    def take_events(self) -> list[str]:
        """Losses and restarts since the last call, one line of text each."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _start_workers(self, count: int) -> list[Actor]:
        config, options = self._config, self._placement.verifier_options()
        workers = [Actor(VerifierWorker, config, options) for _ in range(count)]
        ray.wait_until_started(workers)
        ray.call_all(workers, "build", self._build)
        return workers

    def _serve(self, number: int) -> None:
        """Judge batches in one process until `None` arrives."""
        while (first := self._queue.get()) is not None:
            size = min(MAX_BATCH, self._queue.qsize() // len(self._workers) + 1)
            batch = [first, *self._take_waiting(size - 1)]
            self._finish(number, [each for each in batch if each.future.set_running_or_notify_cancel()])

    def _take_waiting(self, limit: int) -> Iterator[PendingVerdict]:
        for _ in range(limit):
            try:
                pending = self._queue.get_nowait()
            except Empty:
                return
            if pending is None:  # it must reach a thread that waits in `_serve`
                self._queue.put(None)
                return
            yield pending

    def _finish(self, number: int, batch: Sequence[PendingVerdict]) -> None:
        """Judge a batch and set its futures."""
        try:
            outcomes = self._judge(number, [(each.problem, each.rollout) for each in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                each.future.set_exception(outcome)
            else:
                each.future.set_result(outcome)

    def _judge(self, number: int, responses: Sequence[tuple[Problem, Rollout]]) -> list[Verdict | Exception]:
        """Judge a batch, all of it again if the process is lost: verdicts return in one message."""
        while True:
            try:
                return self._workers[number].call("judge", responses)
            except WorkerLost as error:
                self._restart(number, error)

    def _restart(self, number: int, error: WorkerLost) -> None:
        """Restart a verifier until it stays alive, at most `cluster.restarts` times in all."""
        while True:
            self._count_loss(number, error)
            self._workers[number].kill()
            try:
                (self._workers[number],) = self._start_workers(1)
                return
            except WorkerLost as next_error:
                error = next_error

    def _count_loss(self, number: int, error: WorkerLost) -> None:
        with self._lock:
            if self._closed:
                raise ClusterError("the verifiers are closed") from error
            self.faults["cluster/verifiers_lost"] += 1
            if self.faults["cluster/verifiers_lost"] > self._config.restarts:
                raise ClusterError(
                    f"verifier {number} is lost ({error}), and cluster.restarts={self._config.restarts} allows no "
                    "more restarts; look for out-of-memory kills on its node"
                ) from error
            self._events.append(f"verifier {number} of {len(self._workers)} is lost ({error}); restarting it")
