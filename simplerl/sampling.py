"""From prompts to graded groups: requests with their seeds, and grading that starts with the first finished rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from simplerl.engines.base import Engine, checked
from simplerl.errors import EngineError
from simplerl.rewards.base import Reward
from simplerl.seeding import seed_for
from simplerl.types import GradedRollout, Prompt, Request, Sampling
from simplerl.verifier.base import Verifier


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
    progress: Callable[[GradedRollout], None] = lambda _: None,
) -> list[GradedRollout]:
    """Every request's rollout with verdict and reward, in the order of the requests."""
    graded: dict[str, GradedRollout] = {}
    for rollout in engine.submit(requests):
        verdict = verifier.verify(checked(rollout).text, rollout.prompt.problem.answer)
        graded[rollout.request_id] = GradedRollout(rollout, verdict, reward(rollout, verdict))
        progress(graded[rollout.request_id])
    missing = [request.id for request in requests if request.id not in graded]
    if missing:
        raise EngineError(f"{len(missing)} of {len(requests)} requests never finished, the first is {missing[0]}")
    return [graded[request.id] for request in requests]


def grouped(graded: Sequence[GradedRollout], size: int) -> Iterator[list[GradedRollout]]:
    """Consecutive groups of `size`."""
    for start in range(0, len(graded), size):
        yield list(graded[start : start + size])
