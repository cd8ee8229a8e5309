"""Grading: it starts while rollouts are still decoded, keeps the order of the requests, and ends at a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from simplerl.errors import EngineError, RemoteError
from simplerl.rollouts.grade import generate_and_grade, results_in_order
from simplerl.types import Problem, Prompt, Request, Rollout, Sampling, Verdict
from simplerl.verifiers.base import Verifier

pytestmark = pytest.mark.unit

PROMPT = Prompt(Problem("p", "?", "7"), "?", (1,))
REQUESTS = [Request(str(n), PROMPT, Sampling(8), n) for n in range(6)]
FINISHED = (3, 0, 1, 5, 4, 2)


class Engine:
    """Finishes the requests in the order `FINISHED`, and appends each to `events`."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        for n in FINISHED[: len(requests)]:
            self.events.append(f"rollout {n}")
            yield Rollout.single_turn(str(n), PROMPT, (n,), (-1.0,), f"answer {n}", "stop", 0)


class Echo(Verifier):
    """Judges at once: every response is correct, and its last word is the extracted answer."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        self.events.append(f"verdict {rollout.text[-1]}")
        return Verdict("correct", rollout.text.split()[-1])


class ManualVerifier(Verifier):
    """Never judges: the test sets each verdict's future."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[Verdict]] = {}

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        return self.futures.setdefault(rollout.text[-1], Future())


class Threaded:
    """A reward that calls `call(number)` in `concurrency` threads."""

    def __init__(self, concurrency: int, call: Any) -> None:
        self.concurrency, self.call = concurrency, call

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float:
        return float(self.call(rollout.token_ids[0]))


def grade(engine: Any, verifier: Verifier, reward: Any, events: list[Any] | None = None) -> list[float]:
    events = [] if events is None else events
    graded = generate_and_grade(
        engine, REQUESTS, verifier, reward, lambda g: events.append(f"done {g.rollout.request_id}")
    )
    assert [each.rollout.request_id for each in graded] == [request.id for request in REQUESTS]
    assert all(each.verdict.extracted == each.rollout.request_id for each in graded)
    return [each.reward for each in graded]


def test_a_finished_rollout_is_graded_before_the_next_one_is_decoded() -> None:
    events: list[Any] = []
    main = threading.current_thread()

    def reward(rollout: Rollout, verdict: Verdict) -> float:
        assert threading.current_thread() is main
        events.append(f"reward {rollout.request_id}")
        return rollout.token_ids[0] / 2

    assert grade(Engine(events), Echo(events), reward, events) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert events == [f"{what} {n}" for n in FINISHED for what in ("rollout", "verdict", "reward", "done")]


def test_rewards_are_called_in_the_engines_order_in_any_order_of_verdicts() -> None:
    verifier, called = ManualVerifier(), []
    numbers = [str(n) for n in FINISHED]

    class Slow(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            yield from super().submit(requests)
            # Every rollout is decoded; the verdicts arrive in the opposite order.
            for number in reversed(numbers):
                assert called == []
                verifier.futures[number].set_result(Verdict("correct", number))

    grade(Slow([]), verifier, lambda rollout, verdict: called.append(rollout.request_id) or 1.0)
    assert called == numbers


@pytest.mark.parametrize("concurrency", [2, 3, 6])
def test_rewards_with_concurrency_are_called_together(concurrency: int) -> None:
    """Each call waits until `concurrency` calls run."""
    together = threading.Barrier(concurrency)

    def call(number: int) -> int:
        together.wait(30)
        return number

    assert grade(Engine([]), Echo([]), Threaded(concurrency, call)) == [0, 1, 2, 3, 4, 5]


def test_threads_do_not_change_the_rewards() -> None:
    assert grade(Engine([]), Echo([]), Threaded(4, lambda n: n * n)) == grade(Engine([]), Echo([]), Threaded(1, pow2))


def pow2(number: int) -> int:
    return number**2


def test_the_first_failure_is_raised_while_other_rewards_still_run() -> None:
    release, ended = threading.Event(), threading.Event()

    def call(number: int) -> float:
        if number == FINISHED[1]:
            raise RemoteError("gone")
        release.wait(10)
        ended.set()
        return 0.0

    try:
        with pytest.raises(RemoteError, match="gone"):
            grade(Engine([]), Echo([]), Threaded(2, call))
        assert not ended.is_set()
    finally:
        release.set()


def test_a_failure_of_the_verifier_is_raised_at_once_at_any_position() -> None:
    verifier = ManualVerifier()

    class Failing(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            for rollout in super().submit(requests):
                yield rollout
                if rollout.request_id == "5":
                    verifier.futures["1"].set_exception(RemoteError("gone"))

    events: list[Any] = []
    with pytest.raises(RemoteError, match="gone"):
        grade(Failing(events), verifier, lambda rollout, verdict: 1.0)
    assert events[-1] == "rollout 4", "no later rollout is decoded"


def test_an_exception_of_progress_stops_grading() -> None:
    class Stop(Exception):
        pass

    def stop(_: Any) -> None:
        raise Stop

    events: list[Any] = []
    with pytest.raises(Stop):
        generate_and_grade(Engine(events), REQUESTS, Echo([]), Threaded(2, lambda n: n), stop)
    assert "rollout 3" in events


def test_requests_that_never_finish_are_an_error() -> None:
    class Short(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            return super().submit(requests[:4])

    with pytest.raises(EngineError, match="2 of 6 requests never finished, the first is 2"):
        generate_and_grade(Short([]), REQUESTS, Echo([]), lambda rollout, verdict: 1.0)


# --- results_in_order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pending", [1, 2, 5])
def test_at_most_max_pending_tasks_are_unfinished(max_pending: int) -> None:
    futures: list[Future[int]] = []

    def started(threads: ThreadPoolExecutor) -> Iterator[tuple[int, Future[int]]]:
        for number in range(12):
            assert number < max_pending or futures[number - max_pending].done()
            futures.append(threads.submit(late, number))
            yield number, futures[-1]

    with ThreadPoolExecutor(1) as threads:
        assert list(results_in_order(started(threads), max_pending)) == [(n, n) for n in range(12)]


def late(number: int) -> int:
    time.sleep(0.01)
    return number


def test_a_failure_is_raised_before_an_earlier_task_has_finished() -> None:
    """Three tasks are started, and the first one does not finish."""
    futures: list[Future[int]] = [Future() for _ in range(3)]
    timers = [
        threading.Timer(0.02, futures[2].set_exception, [RemoteError("gone")]),
        threading.Timer(5, futures[0].set_result, [0]),
    ]
    for timer in timers:
        timer.start()
    with pytest.raises(RemoteError, match="gone"):
        list(results_in_order(enumerate(futures)))
    assert not futures[0].done()
    for timer in timers:
        timer.cancel()
        timer.join()


def test_results_wait_for_the_first_task() -> None:
    head: Future[str] = Future()
    timer = threading.Timer(0.05, head.set_result, ["late"])
    rest: list[Future[str]] = [Future() for _ in range(3)]
    for future in rest:
        future.set_result("early")
    timer.start()
    assert list(results_in_order(enumerate([head, *rest]), max_pending=2)) == [
        (0, "late"),
        (1, "early"),
        (2, "early"),
        (3, "early"),
    ]
    timer.join()
