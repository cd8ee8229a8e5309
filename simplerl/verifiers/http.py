"""A verifier behind an address: {"response", "gold"} is posted as JSON, the answer is {"verdict"} and what it adds.

`verdict` is correct, wrong, no_answer or error; `extracted` and `method` are strings and may be left out.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, get_args

from simplerl.config import PluginConfig
from simplerl.http import Client, Endpoint
from simplerl.types import Verdict, VerdictLabel
from simplerl.verifiers.base import Verifier


class Config(PluginConfig, Endpoint):
    """Where the verifier is."""

    name: Literal["http"] = "http"


class HttpVerifier(Verifier):
    """Asks the service, `concurrency` questions at a time. A future raises `RemoteError` where no verdict is to be had:
    a service that is away is not a model that answers wrongly."""

    def __init__(self, config: Config) -> None:
        self._client = Client(config)
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="verifier")

    def submit(self, response: str, gold: str) -> Future[Verdict]:
        return self._threads.submit(self._ask, response, gold)

    def _ask(self, response: str, gold: str) -> Verdict:
        started = time.perf_counter()
        answer = self._client.ask({"response": response, "gold": gold}, _checked)
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
