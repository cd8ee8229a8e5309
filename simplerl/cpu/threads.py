"""Threads of this process that compute side by side, each with its share of the processor's threads.

On a CPU two micro-batches at once, each on one core, cost less than one after the other on two: small operators do not
wait for each other. What runs in which lane depends on its place alone, never on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

from simplerl.cpu_sizes import MAX_DEFAULT_THREADS

T = TypeVar("T")
R = TypeVar("R")


def thread_count(device: torch.device, wanted: int | None) -> int:
    """`wanted` threads; for None one per torch thread, at most `MAX_DEFAULT_THREADS`, on a CPU and one elsewhere."""
    if wanted is not None:
        return wanted
    return min(MAX_DEFAULT_THREADS, torch.get_num_threads()) if device.type == "cpu" else 1


class CPUThreads:
    """`count` threads. With one, everything happens in the caller's."""

    def __init__(self, count: int) -> None:
        self.count = count
        share = max(1, torch.get_num_threads() // count)
        self._pool = None
        if count > 1:
            self._pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(share,))

    def map(self, function: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """`function(lane, item)` of every item, in their order; item i runs in lane i % count, one after the other.

        Grad mode and autocast belong to a thread: the function sets its own. Raises the first failure in that order
        once every lane has stopped.
        """
        if self._pool is None:
            return [function(0, item) for item in items]
        failed = threading.Event()

        def share(thread: int) -> list[R]:
            results = []
            for item in items[thread :: self.count]:
                if failed.is_set():
                    break
                try:
                    results.append(function(thread, item))
                except BaseException:
                    failed.set()
                    raise
            return results

        futures = [self._pool.submit(share, thread) for thread in range(self.count)]
        shares = _results(futures)
        return [shares[index % self.count][index // self.count] for index in range(len(items))]

    def merge(self, streams: Sequence[Iterator[T]]) -> Iterator[T]:
        """What the streams yield, as it comes; stream i runs in a thread of its own. At most `count` streams.

        Raises the first failure; the other streams are closed first, as they are when this iterator is.
        """
        if self._pool is None:
            for stream in streams:
                yield from stream
            return
        queue: SimpleQueue[tuple[bool, T | None]] = SimpleQueue()
        stop = threading.Event()
        futures = [self._pool.submit(_drain, stream, queue, stop) for stream in streams]
        try:
            running = len(futures)
            while running:
                more, item = queue.get()
                if more:
                    yield item  # type: ignore[misc]
                else:
                    running -= 1
        finally:
            stop.set()
            _results(futures)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _drain(stream: Iterator[T], queue: SimpleQueue[tuple[bool, T | None]], stop: threading.Event) -> None:
    """Puts a stream's items into the queue and at last its end, whatever happens."""
    try:
        for item in stream:
            if stop.is_set():
                break
            queue.put((True, item))
    except BaseException:
        stop.set()
        raise
    finally:
        getattr(stream, "close", lambda: None)()
        queue.put((False, None))


def _results(futures: Sequence[Future[R]]) -> list[R]:
    """All results; the first failure is raised after every one has ended."""
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        raise failures[0]
    return [future.result() for future in futures]
