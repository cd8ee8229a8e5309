"""CPU threads: indices alone decide what runs where; failures are raised and stop the other threads."""

import threading
import time

import pytest
import torch

from simplerl.cpu import CPUThreads, thread_count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(count):
    cpu_threads = CPUThreads(count)

    def work(thread_index, item):
        time.sleep(0.002 * (7 - item))
        return thread_index, item

    assert cpu_threads.map(work, range(7)) == [(item % count, item) for item in range(7)]
    assert cpu_threads.map(work, []) == []
    cpu_threads.close()


def test_threads_run_side_by_side():
    cpu_threads, both = CPUThreads(2), threading.Barrier(2, timeout=20)
    assert cpu_threads.map(lambda thread_index, item: both.wait() >= 0, [0, 1]) == [True, True]
    cpu_threads.close()


def test_the_first_failure_is_raised_and_every_thread_stops():
    cpu_threads, done = CPUThreads(2), []

    def work(thread_index, item):
        if item == 1:
            raise ValueError("item 1")
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="item 1"):
        cpu_threads.map(work, range(40))
    assert len(done) < 20
    assert cpu_threads.map(lambda thread_index, item: item, [5, 6]) == [5, 6]
    cpu_threads.close()


@pytest.mark.parametrize("count", [1, 2])
def test_streams_are_merged_and_none_is_lost(count):
    cpu_threads = CPUThreads(count)
    streams = [iter(range(start, start + 50)) for start in range(0, 50 * count, 50)]
    found = list(cpu_threads.merge(streams))
    assert sorted(found) == list(range(50 * count))
    for start in range(0, 50 * count, 50):
        own = [item for item in found if start <= item < start + 50]
        assert own == sorted(own)
    cpu_threads.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_that_fails_is_raised_and_the_others_are_closed(count):
    cpu_threads, closed = CPUThreads(count), threading.Event()

    def endless():
        try:
            while True:
                time.sleep(0.001)
                yield 0
        finally:
            closed.set()

    def failing():
        yield 1
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        list(cpu_threads.merge([failing(), *[endless() for _ in range(count - 1)]]))
    assert count == 1 or closed.wait(10)
    cpu_threads.close()


def test_whoever_stops_listening_stops_the_streams():
    cpu_threads, closed = CPUThreads(2), [threading.Event(), threading.Event()]

    def endless(number):
        try:
            while True:
                time.sleep(0.001)
                yield number
        finally:
            closed[number].set()

    merged = cpu_threads.merge([endless(0), endless(1)])
    assert next(merged) in (0, 1)
    merged.close()
    assert all(each.is_set() for each in closed)
    cpu_threads.close()


def test_each_thread_has_its_share_of_the_torch_threads():
    before = torch.get_num_threads()
    cpu_threads = CPUThreads(2)
    assert cpu_threads.map(lambda thread_index, item: torch.get_num_threads(), [0, 1]) == [max(1, before // 2)] * 2
    assert torch.get_num_threads() == before
    cpu_threads.close()


def test_the_number_of_threads_if_none_is_set():
    assert thread_count(torch.device("cpu"), None) == min(8, torch.get_num_threads())
    assert thread_count(torch.device("cpu"), 3) == 3
    assert thread_count(torch.device("cuda"), None) == 1
