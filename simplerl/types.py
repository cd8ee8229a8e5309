"""The values that flow through a training step. All are small and frozen; each stage makes a new one.

A token's life: Problem -> Prompt -> Request -> Rollout -> GradedRollout -> Batch (see `simplerl.batch.batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
Transfer = Literal["nccl", "ipc"]
"""How weights go from GPU to GPU: over the link, or within one that two processes share."""
VerdictLabel = Literal["correct", "wrong", "no_answer", "error"]
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer."""

    id: str
    question: str
    answer: str
    level: int | None = None
    subject: str | None = None
    source: str = ""
    solution: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem rendered by a template and tokenised."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a response to learn, its end token included."""

    prompt: Prompt
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. `temperature` 0 is greedy; `top_k` 0 keeps every token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One response to generate. Its random numbers depend on `seed` alone."""

    id: str
    prompt: Prompt
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished response.

    `token_ids` includes the end token when `finish_reason` is "stop" and an end token was sampled.
    `sampled_logprobs` are float32 log-probabilities under the distribution the token was drawn from
    (temperature, top-p and top-k applied), one per token. `policy_version` is the version of the weights.
    """

    request_id: str
    prompt: Prompt
    token_ids: tuple[int, ...]
    sampled_logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response. `error` (a crash, a time-out) is never silently `wrong`."""

    label: VerdictLabel
    extracted: str | None = None
    method: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class GradedRollout:
    """A rollout with its verdict and its scalar reward."""

    rollout: Rollout
    verdict: Verdict
    reward: float


Phase = Callable[[str, int], AbstractContextManager[Callable[[GradedRollout], None] | None]]
"""Opens a timed phase of a step, given its name and its number of items; gives what to call for each finished one."""

Notice = Callable[[str], None]
"""Shows one line of text to the user."""
