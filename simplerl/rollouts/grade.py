"""From prompts to graded groups: requests with their seeds, and grading that starts with the first finished rollout."""

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
    """`sampling.n` requests per prompt, prompt by prompt.

    A seed depends on the purpose, the problem and the sample's number; a problem that occurs again in the batch
    counts on, so that it is not answered with the same random numbers.
    """
    seen: Counter[str] = Counter()
    one = replace(sampling, n=1)
    requests = []
    for prompt in prompts:
        for _ in range(sampling.n):
            index = seen[prompt.problem.id]
            seen[prompt.problem.id] += 1
            name = "/".join(map(str, (*purpose, prompt.problem.id, index)))
            requests.append(Request(name, prompt, one, seed_for(run_seed, *purpose, prompt.problem.id, index)))
    return requests


def graded_rollouts(
    engine: Engine,
    requests: Sequence[Request],
    verifier: Verifier,
    reward: Reward,
    progress: Callable[[GradedRollout], None] | None = None,
) -> list[GradedRollout]:
    """Every request's rollout with verdict and reward, in the order of the requests.

    Verdicts are asked for as rollouts finish, rewards as verdicts come in, both in the order in which the engine
    finished. A reward with a `concurrency` above 1 is called in so many threads, any other in this one. The first
    failure of a verifier or a reward is raised, without waiting for what else is under way.
    """
    graded: dict[str, GradedRollout] = {}
    finished = (checked(rollout) for rollout in engine.submit(requests))
    judged = in_order((each, verifier.submit(each.prompt.problem, each)) for each in finished)
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
        for pair, value in in_order((pair, threads.submit(reward, *pair)) for pair in judged):
            yield GradedRollout(*pair, value)
    finally:
        # After a failure nobody needs the other answers.
        threads.shutdown(wait=False, cancel_futures=True)


def in_order(started: Iterable[tuple[A, Future[B]]], most: int | None = None) -> Iterator[tuple[A, B]]:
    """Results in the order in which they were started; more is started while the first ones are not there yet.

    No more than `most` wait at a time. Raises the first failure to happen, wherever it stands in the order.
    """
    waiting: deque[tuple[A, Future[B]]] = deque()
    done: SimpleQueue[Future[B]] = SimpleQueue()
    for each in started:
        waiting.append(each)
        each[1].add_done_callback(done.put)
        while not done.empty() or len(waiting) == most:
            done.get().result()
            yield from _ready(waiting)
    while waiting:
        done.get().result()
        yield from _ready(waiting)


def _ready(waiting: deque[tuple[A, Future[B]]]) -> Iterator[tuple[A, B]]:
    while waiting and waiting[0][1].done():
        subject, future = waiting.popleft()
        yield subject, future.result()


def grouped(graded: Sequence[GradedRollout], size: int) -> Iterator[list[GradedRollout]]:
    """Consecutive groups of `size`."""
    for start in range(0, len(graded), size):
        yield list(graded[start : start + size])
