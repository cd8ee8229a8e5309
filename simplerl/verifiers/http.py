"""A verifier service: posts {"response", "gold", "problem_id", "question"} as JSON, reads {"verdict"} and more.

`verdict` is correct, wrong, no_answer or error; `extracted` and `method` are optional strings.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, get_args

from simplerl.config import PluginConfig
from simplerl.http import Client, Endpoint
from simplerl.types import Problem, Rollout, Verdict, VerdictLabel
from simplerl.verifiers.base import Verifier


class Config(PluginConfig, Endpoint):
    """Where the verifier is."""

    name: Literal["http"] = "http"


class HttpVerifier(Verifier):
    """Asks the service, `concurrency` questions at a time.

    A future raises `RemoteError` if the service gives no verdict: an outage must not look like a wrong answer.
    """

    def __init__(self, config: Config) -> None:
        self._client = Client(config)
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="verifier")

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        return self._threads.submit(self._ask, problem, rollout.text)

    def _ask(self, problem: Problem, response: str) -> Verdict:
        started = time.perf_counter()
        asked = {"response": response, "gold": problem.answer, "problem_id": problem.id, "question": problem.question}
        answer = self._client.post(asked, _checked)
        seconds = time.perf_counter() - started
        return Verdict(answer["verdict"], answer.get("extracted"), answer.get("method") or "http", seconds)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    labels = get_args(VerdictLabel)
    if answer.get("verdict") not in labels:
        raise ValueError(f'"verdict" is {answer.get("verdict")!r}, not one of {", ".join(labels)}')
    for key in ("extracted", "method"):
        if not isinstance(answer.get(key), str | None):
            raise ValueError(f'"{key}" is {answer[key]!r}, not a string')
    return answer


def build(config: Config) -> HttpVerifier:
    return HttpVerifier(config)
