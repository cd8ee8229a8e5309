"""Many questions at once; results are yielded as they arrive."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def as_finished(work: Callable[[A], B], tasks: Iterable[A], threads: int) -> Generator[B]:
    """Results in the order in which they finish.

    After a failure nothing new starts; running tasks finish and are yielded, then the failure is raised. Threads that
    nobody waits for end with the process.
    """
    left = deque(tasks)
    results: SimpleQueue[Future[B] | None] = SimpleQueue()
    begun = min(threads, len(left))
    for _ in range(begun):
        # a pool's threads would keep the process alive until the last answer, even after Ctrl-C
        threading.Thread(target=_work, args=(work, left, results), name="teacher", daemon=True).start()
    failures: list[BaseException] = []
    try:
        while begun:
            if (result := results.get()) is None:
                begun -= 1
            elif error := result.exception():
                failures.append(error)
            else:
                yield result.result()
    finally:
        left.clear()
    if failures:
        raise failures[0]


def _work(work: Callable[[A], B], left: deque[A], results: SimpleQueue[Future[B] | None]) -> None:
    """Run tasks until there are none; None marks the end of this thread."""
    while left:
        try:
            task = left.popleft()
        except IndexError:  # another thread took the last task
            break
        outcome = _outcome(work, task)
        if outcome.exception():
            left.clear()
        results.put(outcome)
    results.put(None)


def _outcome(work: Callable[[A], B], task: A) -> Future[B]:
    outcome: Future[B] = Future()
    try:
        outcome.set_result(work(task))
    except BaseException as error:
        outcome.set_exception(error)
    return outcome
