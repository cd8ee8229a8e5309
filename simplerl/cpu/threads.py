"""Threads of this process that compute side by side, each with its share of torch's threads.

On a CPU two micro-batches at once, each on one core, cost less than one after the other on two cores: small operators
spend no time waiting for each other. The index of an item alone decides which thread runs it, never timing.
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
    """A pool of `count` threads. With `count` 1 everything runs in the caller's thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        torch_threads = max(1, torch.get_num_threads() // count)
        self._pool = None
        if count > 1:
            self._pool = ThreadPoolExecutor(
                count, "simplerl-cpu", initializer=torch.set_num_threads, initargs=(torch_threads,)
            )

    def map(self, function: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """`function(thread_index, item)` of every item, in the items' order.

        Item i runs in thread i % count, after that thread's earlier items. Grad mode and autocast belong to a thread:
        the function sets its own. Once every thread has stopped, raises the failure of the lowest thread index.
        """
        if self._pool is None:
            return [function(0, item) for item in items]
        failed = threading.Event()

        def run_share(thread_index: int) -> list[R]:
            results = []
            for item in items[thread_index :: self.count]:
                if failed.is_set():
                    break
                try:
                    results.append(function(thread_index, item))
                except BaseException:
                    failed.set()
                    raise
            return results

        shares = _results([self._pool.submit(run_share, thread_index) for thread_index in range(self.count)])
        return [shares[i % self.count][i // self.count] for i in range(len(items))]

    def merge(self, streams: Sequence[Iterator[T]]) -> Iterator[T]:
        """Yield the items of all streams as they come. Stream i runs in a thread of its own; at most `count` streams.

        Raises the first stream's failure after closing the other streams. Closing this iterator closes all streams.
        """
        if self._pool is None:
            for stream in streams:
                yield from stream
            return
        queue: SimpleQueue[tuple[T] | None] = SimpleQueue()
        stop = threading.Event()
        futures = [self._pool.submit(_drain, stream, queue, stop) for stream in streams]
        try:
            running = len(futures)
            while running:
                entry = queue.get()
                if entry is None:
                    running -= 1
                else:
                    yield entry[0]
        finally:
            stop.set()
            _results(futures)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _drain(stream: Iterator[T], queue: SimpleQueue[tuple[T] | None], stop: threading.Event) -> None:
    """Put each item of a stream into the queue, and None at the end, after a failure too."""
    try:
        for item in stream:
            if stop.is_set():
                break
            queue.put((item,))
    except BaseException:
        stop.set()
        raise
    finally:
        getattr(stream, "close", lambda: None)()
        queue.put(None)


def _results(futures: Sequence[Future[R]]) -> list[R]:
    """Wait for every future, then return all results or raise the first failure."""
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        raise failures[0]
    return [future.result() for future in futures]
