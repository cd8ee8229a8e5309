"""Several verifiers as one, in processes of their own: questions are dealt out, a lost one's are asked again."""

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

BATCH = 32
"""Questions that go to a process at once where so many wait: a call takes longer than most verdicts."""
CLOSE = 30.0


class VerifierWorker:
    """A verifier in a process of its own."""

    verifier: Verifier

    def begin(self, make: Callable[[], Verifier]) -> None:
        self.verifier = make()

    def judge(self, questions: Sequence[tuple[Problem, Rollout]]) -> list[Verdict | Exception]:
        """The verdict on each response, or the exception that judging it raised."""
        return [_outcome(future) for future in [self._submit(*question) for question in questions]]

    def _submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        try:
            return self.verifier.submit(problem, rollout)
        except Exception as error:  # of this question alone
            future: Future[Verdict] = Future()
            future.set_exception(error)
            return future


def _outcome(future: Future[Verdict]) -> Verdict | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


@dataclass(frozen=True, slots=True)
class Question:
    problem: Problem
    rollout: Rollout
    future: Future[Verdict] = field(default_factory=Future)


class RemoteVerifier(Verifier):
    """A `Verifier` of several. A thread for each process hands it what waits, and begins it anew when it is lost."""

    def __init__(self, make: Callable[[], Verifier], config: ClusterConfig, place: Placement) -> None:
        """Begins `config.verifiers`, each what `make` gives; raises what that raises."""
        self._make, self._config, self._place = make, config, place
        self._questions: SimpleQueue[Question | None] = SimpleQueue()
        self._closed, self._lock = False, Lock()
        self.faults: Metrics = {"cluster/verifiers_lost": 0.0}
        self._events: list[str] = []
        self._workers = self._begin(config.verifiers)
        self._threads = [Thread(target=self._serve, args=(n,), daemon=True) for n in range(config.verifiers)]
        for thread in self._threads:
            thread.start()

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        question = Question(problem, rollout)
        self._questions.put(question)
        return question.future

    def close(self) -> None:
        """Ends all processes; questions that wait are cancelled."""
        self._closed = True
        for question in self._waiting(self._questions.qsize()):
            question.future.cancel()
        for _ in self._threads:
            self._questions.put(None)
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join(CLOSE)

    def metrics(self) -> Metrics:
        """How many were lost since these verifiers were begun."""
        return dict(self.faults)

    def take_events(self) -> list[str]:
        """What was lost and made good, in words, since this was last asked."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _begin(self, count: int) -> list[Actor]:
        workers = ray.begun([Actor(VerifierWorker, self._config, self._place.verifier()) for _ in range(count)])
        ray.all_of(workers, "begin", self._make)
        return workers

    def _serve(self, number: int) -> None:
        while (first := self._questions.get()) is not None:
            share = min(BATCH, self._questions.qsize() // len(self._workers) + 1)
            batch = [first, *self._waiting(share - 1)]
            self._answer(number, [each for each in batch if each.future.set_running_or_notify_cancel()])

    def _waiting(self, most: int) -> Iterator[Question]:
        for _ in range(most):
            try:
                question = self._questions.get_nowait()
            except Empty:
                return
            if question is None:  # it is meant for whoever waits for a first question
                self._questions.put(None)
                return
            yield question

    def _answer(self, number: int, batch: Sequence[Question]) -> None:
        try:
            outcomes = self._ask(number, [(each.problem, each.rollout) for each in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                each.future.set_exception(outcome)
            else:
                each.future.set_result(outcome)

    def _ask(self, number: int, questions: Sequence[tuple[Problem, Rollout]]) -> list[Verdict | Exception]:
        """All of them again where the process is lost: it had answered none."""
        while True:
            worker = self._workers[number]
            try:
                return ray.answer(worker, worker.call("judge", questions))
            except WorkerLost as error:
                self._replace(number, error)

    def _replace(self, number: int, error: WorkerLost) -> None:
        """Begins a verifier anew, as often as it takes and `cluster.restarts` allows."""
        while True:
            self._count(number, error)
            self._workers[number].kill()
            try:
                (self._workers[number],) = self._begin(1)
                return
            except WorkerLost as again:
                error = again

    def _count(self, number: int, error: WorkerLost) -> None:
        with self._lock:
            if self._closed:
                raise ClusterError("the verifiers are closed") from error
            self.faults["cluster/verifiers_lost"] += 1
            if self.faults["cluster/verifiers_lost"] > self._config.restarts:
                raise ClusterError(
                    f"verifier {number} is lost ({error}), and cluster.restarts={self._config.restarts} allows no "
                    "more; look for out-of-memory kills on its node"
                ) from error
            self._events.append(f"verifier {number} of {len(self._workers)} is lost ({error}); begun anew")
