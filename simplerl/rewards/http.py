"""A reward from a service: what is known of a response is posted as JSON, the answer is {"reward": NUMBER}.

Posted: problem_id, question, answer (the gold one), response, verdict, extracted (or null), finish_reason. The same
question must get the same reward, or a resumed run is not the run that was interrupted.
"""

from __future__ import annotations

from typing import Any, Literal

from simplerl.http import Client, Endpoint
from simplerl.rewards.base import Reward, RewardConfig
from simplerl.types import Rollout, Verdict


class Config(RewardConfig, Endpoint):
    """Where the service is."""

    name: Literal["http"] = "http"


class HttpReward:
    """Asks the service. Its `concurrency` lets grading ask for so many rewards at the same time."""

    def __init__(self, config: Config) -> None:
        self.concurrency = config.concurrency
        self._client = Client(config)

    def __call__(self, rollout: Rollout, verdict: Verdict) -> float:
        """Raises `RemoteError` where there is no number to be had."""
        return self._client.post(question(rollout, verdict), _number)

    def close(self) -> None:
        self._client.close()


def question(rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    """What is posted."""
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
