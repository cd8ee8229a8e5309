"""Grading: while rollouts are still decoded, in the order of the requests, and only until the first failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from simplerl.errors import EngineError, RemoteError
from simplerl.rollouts.grade import graded_rollouts, in_order
from simplerl.types import Problem, Prompt, Request, Rollout, Sampling, Verdict
from simplerl.verifiers.base import Verifier

pytestmark = pytest.mark.unit

PROMPT = Prompt(Problem("p", "?", "7"), "?", (1,))
REQUESTS = [Request(str(n), PROMPT, Sampling(8), n) for n in range(6)]
FINISHED = (3, 0, 1, 5, 4, 2)


class Engine:
    """Finishes the requests in the order `FINISHED`; says in `events` when it does."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        for n in FINISHED[: len(requests)]:
            self.events.append(f"rollout {n}")
            yield Rollout.single_turn(str(n), PROMPT, (n,), (-1.0,), f"answer {n}", "stop", 0)


class Echo(Verifier):
    """Extracts the response's last word, at once."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        self.events.append(f"verdict {rollout.text[-1]}")
        return Verdict("correct", rollout.text.split()[-1])


class Later(Verifier):
    """Every verdict comes when the test says so."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[Verdict]] = {}

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        return self.futures.setdefault(rollout.text[-1], Future())


class Threaded:
    """A reward that waits: `call(number)`, in so many threads."""

    def __init__(self, concurrency: int, call: Any) -> None:
        self.concurrency, self.call = concurrency, call

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float:
        return float(self.call(rollout.token_ids[0]))


def grade(engine: Any, verifier: Verifier, reward: Any, events: list[Any] | None = None) -> list[float]:
    said = [] if events is None else events
    graded = graded_rollouts(engine, REQUESTS, verifier, reward, lambda g: said.append(f"done {g.rollout.request_id}"))
    assert [each.rollout.request_id for each in graded] == [request.id for request in REQUESTS]
    assert all(each.verdict.extracted == each.rollout.request_id for each in graded)
    return [each.reward for each in graded]


def test_every_rollout_is_graded_before_the_next_is_waited_for() -> None:
    events: list[Any] = []
    main = threading.current_thread()

    def reward(rollout: Rollout, verdict: Verdict) -> float:
        assert threading.current_thread() is main
        events.append(f"reward {rollout.request_id}")
        return rollout.token_ids[0] / 2

    assert grade(Engine(events), Echo(events), reward, events) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert events == [f"{what} {n}" for n in FINISHED for what in ("rollout", "verdict", "reward", "done")]


def test_rewards_are_called_in_the_engine_s_order_whenever_verdicts_come() -> None:
    verifier, called = Later(), []
    numbers = [str(n) for n in FINISHED]

    class Slow(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            yield from super().submit(requests)
            # Everything is decoded; the verdicts come in the opposite order.
            for number in reversed(numbers):
                assert called == []
                verifier.futures[number].set_result(Verdict("correct", number))

    grade(Slow([]), verifier, lambda rollout, verdict: called.append(rollout.request_id) or 1.0)
    assert called == numbers


@pytest.mark.parametrize("concurrency", [2, 3, 6])
def test_rewards_that_wait_are_asked_for_together(concurrency: int) -> None:
    """None is there before `concurrency` of them have been asked for."""
    together = threading.Barrier(concurrency)

    def call(number: int) -> int:
        together.wait(30)
        return number

    assert grade(Engine([]), Echo([]), Threaded(concurrency, call)) == [0, 1, 2, 3, 4, 5]


def test_threads_and_none_give_the_same() -> None:
    assert grade(Engine([]), Echo([]), Threaded(4, lambda n: n * n)) == grade(Engine([]), Echo([]), Threaded(1, pow2))


def pow2(number: int) -> int:
    return number**2


def test_the_first_failure_is_raised_while_others_are_under_way() -> None:
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


def test_a_verifier_s_failure_is_raised_wherever_it_stands() -> None:
    verifier = Later()

    class Failing(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            for rollout in super().submit(requests):
                yield rollout
                if rollout.request_id == "5":
                    verifier.futures["1"].set_exception(RemoteError("gone"))

    events: list[Any] = []
    with pytest.raises(RemoteError, match="gone"):
        grade(Failing(events), verifier, lambda rollout, verdict: 1.0)
    assert events[-1] == "rollout 4", "nothing is decoded in vain"


def test_a_stop_asked_for_between_rollouts_is_heard() -> None:
    class Stop(Exception):
        pass

    def stop(_: Any) -> None:
        raise Stop

    events: list[Any] = []
    with pytest.raises(Stop):
        graded_rollouts(Engine(events), REQUESTS, Echo([]), Threaded(2, lambda n: n), stop)
    assert "rollout 3" in events


def test_requests_that_never_finish_are_an_error() -> None:
    class Short(Engine):
        def submit(self, requests: Sequence[Request]) -> Iterator[Rollout]:
            return super().submit(requests[:4])

    with pytest.raises(EngineError, match="2 of 6 requests never finished, the first is 2"):
        graded_rollouts(Short([]), REQUESTS, Echo([]), lambda rollout, verdict: 1.0)


# --- in_order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_than_allowed_wait_at_a_time(most: int) -> None:
    futures: list[Future[int]] = []

    def started(threads: ThreadPoolExecutor) -> Iterator[tuple[int, Future[int]]]:
        for number in range(12):
            assert number < most or futures[number - most].done()
            futures.append(threads.submit(late, number))
            yield number, futures[-1]

    with ThreadPoolExecutor(1) as threads:
        assert list(in_order(started(threads), most)) == [(n, n) for n in range(12)]


def late(number: int) -> int:
    time.sleep(0.01)
    return number


def test_a_failure_behind_a_head_that_waits_is_raised() -> None:
    """All have been started, and the first one never comes."""
    futures: list[Future[int]] = [Future() for _ in range(3)]
    timers = [
        threading.Timer(0.02, futures[2].set_exception, [RemoteError("gone")]),
        threading.Timer(5, futures[0].set_result, [0]),
    ]
    for timer in timers:
        timer.start()
    with pytest.raises(RemoteError, match="gone"):
        list(in_order(enumerate(futures)))
    assert not futures[0].done()
    for timer in timers:
        timer.cancel()
        timer.join()


def test_the_line_waits_for_its_head() -> None:
    head: Future[str] = Future()
    timer = threading.Timer(0.05, head.set_result, ["late"])
    rest: list[Future[str]] = [Future() for _ in range(3)]
    for future in rest:
        future.set_result("early")
    timer.start()
    assert list(in_order(enumerate([head, *rest]), most=2)) == [(0, "late"), (1, "early"), (2, "early"), (3, "early")]
    timer.join()
