"""A reward from a service: a response is posted as JSON, and the service answers {"reward": NUMBER}.

Posted: problem_id, question, answer (the gold one), response, verdict, extracted (or null), finish_reason. The service
must be deterministic; otherwise a resumed run differs from an uninterrupted one.
"""

from __future__ import annotations

from typing import Any, Literal

from simplerl.http import Client, Endpoint
from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig, Endpoint):
    """The service's address and its retry policy."""

    name: Literal["http"] = "http"


class HttpReward:
    """Post each response to the service. Up to `concurrency` requests are sent at once."""

    def __init__(self, config: Config) -> None:
        self.concurrency = config.concurrency
        self._client = Client(config)

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float:
        """Raise `RemoteError` if the service gives no number within its time limits."""
        return self._client.post(question(rollout, verdict), _number)

    def close(self) -> None:
        self._client.close()


def question(rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    """The JSON object that is posted for a response."""
    problem = rollout.prompt.problem
    return {
        "problem_id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "response": rollout.text,
        "verdict": verdict.label,
        "extracted": verdict.extracted,
        "finish_reason": rollout.finish_reason,
    }


def _number(answer: dict[str, Any]) -> float:
    value = answer.get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'"reward" is {value!r}, not a number')
    return float(value)


def build(config: Config) -> Reward:
    return HttpReward(config)
