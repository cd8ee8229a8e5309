"""Values that flow through a training step. All are small and frozen; each stage makes a new one.

Problem -> Prompt -> Request -> Rollout -> GradedRollout -> Batch (see `simplerl.batch.batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
Transfer = Literal["nccl", "ipc"]
"""Weight transfer between GPUs: NCCL over the link, or CUDA IPC within a GPU that two processes share."""
VerdictLabel = Literal["correct", "wrong", "no_answer", "error"]
Metrics = dict[str, float]
Aggregation = Literal["sequence-mean", "token-mean", "constant"]
"""How token losses become one number, see `simplerl.losses.losses.token_weights`."""
KLEstimator = Literal["k1", "k2", "k3", "k3-unbiased"]
"""How a KL is estimated from sampled tokens, see `simplerl.losses.losses.kl_estimate`."""
ImportanceMode = Literal["none", "truncated", "masked"]
"""How a loss is corrected for the policy that sampled, see `simplerl.losses.importance.importance_weights`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question whose answer a verifier can check; `answer` is the gold answer."""

    id: str
    question: str
    answer: str
    level: int | None = None
    subject: str | None = None
    source: str = ""
    solution: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_answer(self) -> bool:
        """True if neither the question nor the gold answer is empty."""
        return bool(self.question.strip() and self.answer.strip())


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem rendered by a template and tokenised."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a response to learn; the response includes its end token."""

    prompt: Prompt
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. `temperature` 0 is greedy decoding; `top_k` 0 keeps every token."""

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
class Turn:
    """Consecutive response tokens of one author: the policy, or the environment (a tool's output, a user's reply)."""

    token_ids: tuple[int, ...]
    text: str
    sampled_logprobs: tuple[float, ...] | None = None
    """Float32 log-probs under the distribution that each token was drawn from (temperature, top-p and top-k applied).
    None: the environment wrote this turn, so it is not trained on."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished response to a prompt, in one turn or several.

    `token_ids` includes the end token if `finish_reason` is "stop" and an end token was sampled. `policy_version` is
    the version of the weights that sampled it.
    """

    request_id: str
    prompt: Prompt
    turns: tuple[Turn, ...]
    finish_reason: FinishReason
    policy_version: int

    @classmethod
    def single_turn(
        cls,
        request_id: str,
        prompt: Prompt,
        token_ids: tuple[int, ...],
        sampled_logprobs: tuple[float, ...],
        text: str,
        finish_reason: FinishReason,
        policy_version: int,
    ) -> Rollout:
        """A response that the policy wrote without interruption."""
        return cls(request_id, prompt, (Turn(token_ids, text, sampled_logprobs),), finish_reason, policy_version)

    @classmethod
    def recorded(cls, problem: Problem, text: str, finish_reason: FinishReason = "stop") -> Rollout:
        """A response known by its text alone, such as one that was read from a file."""
        return cls.single_turn(problem.id, Prompt(problem, "", ()), (), (), text, finish_reason, 0)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of all turns."""
        return self.turns[0].token_ids if len(self.turns) == 1 else tuple(t for x in self.turns for t in x.token_ids)

    @property
    def loss_mask(self) -> tuple[bool, ...]:
        """For each of `token_ids`: True if the policy sampled it, so that it is trained on."""
        return tuple(turn.sampled_logprobs is not None for turn in self.turns for _ in turn.token_ids)

    @property
    def sampled_logprobs(self) -> tuple[float, ...]:
        """Log-probs of the tokens whose `loss_mask` is True."""
        return tuple(value for turn in self.turns for value in turn.sampled_logprobs or ())

    @property
    def text(self) -> str:
        """Text of all turns."""
        return "".join(turn.text for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's judgement of one response. A crash or a time-out is `error`, never silently `wrong`."""

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
