"""Turns prompts into seeded requests and requests into graded rollouts. Grading starts with the first finished one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeVar

from simplerl.engines.base import Engine, checked
from simplerl.errors import EngineError
from simplerl.rewards.base import Reward
from simplerl.seeding import seed_for
from simplerl.types import GradedRollout, Prompt, Request, Rollout, Sampling, Verdict
from simplerl.verifiers.base import Verifier

A = TypeVar("A")
B = TypeVar("B")


def make_requests(prompts: Sequence[Prompt], sampling: Sampling, run_seed: int, *purpose: str | int) -> list[Request]:
    """Make `sampling.n` requests per prompt, prompt by prompt.

    A seed depends on the purpose, the problem and the sample's number. If a problem occurs twice in the batch, the
    second occurrence continues the numbers of the first, so that no two responses use the same random numbers.
    """
    seen: Counter[str] = Counter()
    single = replace(sampling, n=1)
    requests = []
    for prompt in prompts:
        for _ in range(sampling.n):
            index = seen[prompt.problem.id]
            seen[prompt.problem.id] += 1
            name = "/".join(map(str, (*purpose, prompt.problem.id, index)))
            requests.append(Request(name, prompt, single, seed_for(run_seed, *purpose, prompt.problem.id, index)))
    return requests


def generate_and_grade(
    engine: Engine,
    requests: Sequence[Request],
    verifier: Verifier,
    reward: Reward,
    progress: Callable[[GradedRollout], None] | None = None,
) -> list[GradedRollout]:
    """Generate, verify and reward a rollout for every request; return them in the order of the requests.

    A rollout is verified as soon as the engine finishes it, and rewarded as soon as its verdict and those of earlier
    finished rollouts are known. A reward with a `concurrency` above 1 runs in that number of threads, any other in
    this thread. `progress` is called with each graded rollout. Raises the first failure of the verifier or the reward
    without waiting for other responses, and `EngineError` if a request never finishes.
    """
    graded: dict[str, GradedRollout] = {}
    finished = (checked(rollout) for rollout in engine.submit(requests))
    judged = results_in_order((each, verifier.submit(each.prompt.problem, each)) for each in finished)
    with closing(_rewarded(judged, reward)) as results:
        for each in results:
            graded[each.rollout.request_id] = each
            if progress is not None:
                progress(each)
    missing = [request.id for request in requests if request.id not in graded]
    if missing:
        raise EngineError(f"{len(missing)} of {len(requests)} requests never finished, the first is {missing[0]}")
    return [graded[request.id] for request in requests]


def _rewarded(judged: Iterable[tuple[Rollout, Verdict]], reward: Reward) -> Generator[GradedRollout]:
    concurrency = getattr(reward, "concurrency", 1)
    if concurrency == 1:
        for rollout, verdict in judged:
            yield GradedRollout(rollout, verdict, reward(rollout, verdict))
        return
    threads = ThreadPoolExecutor(concurrency, thread_name_prefix="reward")
    try:
        for pair, value in results_in_order((pair, threads.submit(reward, *pair)) for pair in judged):
            yield GradedRollout(*pair, value)
    finally:
        # After a failure the other rewards are not used.
        threads.shutdown(wait=False, cancel_futures=True)


def results_in_order(started: Iterable[tuple[A, Future[B]]], max_pending: int | None = None) -> Iterator[tuple[A, B]]:
    """Yield results in the order in which their tasks were started. Iterating `started` starts the next task.

    At most `max_pending` tasks are unfinished or not yet yielded; None: no limit. Raises the failure that happens
    first, at any position in the order.
    """
    waiting: deque[tuple[A, Future[B]]] = deque()
    done: SimpleQueue[Future[B]] = SimpleQueue()
    for each in started:
        waiting.append(each)
        each[1].add_done_callback(done.put)
        while not done.empty() or len(waiting) == max_pending:
            done.get().result()
            yield from _take_finished(waiting)
    while waiting:
        done.get().result()
        yield from _take_finished(waiting)


def _take_finished(waiting: deque[tuple[A, Future[B]]]) -> Iterator[tuple[A, B]]:
    while waiting and waiting[0][1].done():
        item, future = waiting.popleft()
        yield item, future.result()


def split_into_groups(graded: Sequence[GradedRollout], size: int) -> Iterator[list[GradedRollout]]:
    """Split into consecutive groups of `size`."""
    for start in range(0, len(graded), size):
        yield list(graded[start : start + size])
