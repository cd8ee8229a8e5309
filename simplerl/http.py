"""A client of services that answer a JSON object with a JSON object, with retries of failures that may pass."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import orjson
from pydantic import Field, field_validator
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from simplerl.config import Frozen
from simplerl.errors import ConfigError, RemoteError
from simplerl.formatting import to_utf8

MAX_ANSWER_BYTES = 1 << 20
"""Longest answer, unless a `RetryPolicy` sets another limit."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Limits of the random wait before a retry, in seconds. The limit starts at the first and doubles up to the second."""

QUIET_SECONDS = 60.0
"""Least seconds between two warnings that a service does not answer."""

SHOWN_CHARACTERS = 200
"""Characters of an answer that an error shows."""

RESUME_HINT = "then run the same command again: a run resumes from its last checkpoint"

T = TypeVar("T")
log = logging.getLogger(__name__)


class Endpoint(Frozen):
    """Address of a service, and limits of time and concurrency."""

    url: str
    """Address, http:// or https://, that answers a POST of a JSON object with a JSON object. Redirects are errors."""

    timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that one attempt may take."""

    give_up_seconds: float = Field(default=600.0, ge=0)
    """Seconds that all attempts together may take, if the service is down, overloaded or slow; 0 makes one attempt."""

    concurrency: int = Field(default=16, ge=1)
    """Requests at the same time."""

    key_variable: str | None = None
    """Environment variable with a key, sent as `Authorization: Bearer KEY`. The key is not stored. None: no key."""

    @field_validator("url")
    @classmethod
    def _address(cls, text: str) -> str:
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL as error:
            raise ValueError(f"is not an address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must be http://HOST/... or https://HOST/...")
        if url.userinfo:
            raise ValueError("a name and a password would be stored with the recipe; use key_variable")
        return text


class RefusedError(RemoteError):
    """The service refused this request. The client stays usable, because other requests may be answered."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of one kind of service, and the meaning of its failures."""

    max_answer_bytes: int = MAX_ANSWER_BYTES
    """Longest answer; a longer one is unusable."""

    refusal_statuses: frozenset[int] = frozenset()
    """HTTP statuses that refuse one request only. Other statuses 3xx and 4xx, except 429, end the client."""

    unusable_retries: int | None = None
    """Retries after an unusable answer, before the request counts as refused. None: an unusable answer ends the client,
    because the service would give the same one again."""

    requests_per_minute: float | None = None
    """Attempts per minute of all threads together, evenly spaced. None: no limit."""

    remedies: Mapping[int, str] = field(default_factory=dict)
    """Start of the advice in an error that ends the client, by HTTP status."""

    resume_hint: str = RESUME_HINT
    """End of that advice: how to resume afterwards."""


class _Pace:
    """Lets threads continue one by one, at a fixed interval."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self.seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, closed: threading.Event) -> None:
        """Wait for the caller's turn, or until `closed` is set."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self.seconds
        closed.wait(max(0.0, turn - time.monotonic()))


@dataclass(slots=True)
class _Request:
    """A request, and the number of unusable answers to it so far."""

    body: bytes
    headers: Mapping[str, str]
    unusable_answers: int = 0


class _TransientError(Exception):
    """A failure that may pass. `seconds`: least time until the next attempt, from the service's Retry-After."""

    def __init__(self, text: str, seconds: float = 0.0) -> None:
        super().__init__(text)
        self.seconds = seconds


class Client:
    """Posts requests to one endpoint, from any thread. After `close`, or an error that ends it, it makes no retries."""

    def __init__(self, endpoint: Endpoint, policy: RetryPolicy | None = None) -> None:
        self.endpoint = endpoint
        self.policy = policy or RetryPolicy()
        self._closed = threading.Event()
        self._pace = _Pace(self.policy.requests_per_minute)
        self._last_warning = -QUIET_SECONDS
        self._http = httpx2.Client(
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"}
            | _authorization(endpoint.key_variable),
            timeout=endpoint.timeout_seconds,
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        )

    def post(
        self, content: Mapping[str, Any], read: Callable[[dict[str, Any]], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """Post a JSON object and return `read(answer)`. `read` raises `ValueError` for an answer that it cannot use.

        Raises `RemoteError` at once for a refusal (3xx, 4xx) and for an unusable answer (no JSON object, NaN, too
        long), and after `give_up_seconds` if attempts fail to connect, time out, or end in 429 or 5xx. Raises
        `RefusedError` if the policy counts the failure as a refusal of this request only.
        """
        body = to_utf8(json.dumps(content, ensure_ascii=False))
        self._pace.wait(self._closed)
        try:
            request = _Request(body, headers or {})
            return self._retrying()(lambda: self._attempt(request, read))
        except RetryError as error:
            self._closed.set()
            raise self._give_up_error(error) from error.last_attempt.exception()
        except RefusedError:
            raise
        except RemoteError:
            self._closed.set()
            raise

    def close(self) -> None:
        """Stop the retries of all threads. An attempt that is under way ends within `timeout_seconds`."""
        self._closed.set()
        self._http.close()

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(_TransientError),
            wait=_wait,
            stop=stop_before_delay(self.endpoint.give_up_seconds) | stop_when_event_set(self._closed),
            sleep=self._sleep,
            before_sleep=self._warn,
        )

    def _sleep(self, seconds: float) -> None:
        sleep_using_event(self._closed)(seconds)
        self._pace.wait(self._closed)

    def _attempt(self, request: _Request, read: Callable[[dict[str, Any]], T]) -> T:
        try:
            response, content = self._send(request)
        except httpx2.RequestError as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise _TransientError(_describe(response, content), _retry_after(response.headers.get("Retry-After", "")))
        if not response.is_success:
            raise self._refusal_error(response, content)
        try:
            return read(_parse_object(content, self.policy.max_answer_bytes))
        except ValueError as error:
            raise self._unusable_error(request, f"unusable answer {_describe(response, content)}: {error}") from None

    def _send(self, request: _Request) -> tuple[httpx2.Response, bytes]:
        """Send a request; return status line and content. Stops to read an answer that is too long or too slow."""
        deadline = time.monotonic() + self.endpoint.timeout_seconds
        content = b""
        call = self._http.stream("POST", self.endpoint.url, content=request.body, headers=dict(request.headers))
        with call as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > self.policy.max_answer_bytes:
                    break
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout(f"the answer took longer than {self.endpoint.timeout_seconds:g} s")
        return response, content

    def _refusal_error(self, response: httpx2.Response, content: bytes) -> RemoteError:
        status, answer = response.status_code, _describe(response, content)
        if status in self.policy.refusal_statuses:
            return RefusedError(f"{self.endpoint.url} refused this request with {answer}")
        remedy = self.policy.remedies.get(status, "Fix the service or its address")
        return RemoteError(
            f"{self.endpoint.url} refused the request with {answer}. {remedy}, {self.policy.resume_hint}"
        )

    def _unusable_error(self, request: _Request, fault: str) -> Exception:
        """The error for an unusable answer, by the policy's `unusable_retries`."""
        if self.policy.unusable_retries is None:
            return RemoteError(f"{self.endpoint.url}: {fault}. Fix the service, {self.policy.resume_hint}")
        request.unusable_answers += 1
        if request.unusable_answers <= self.policy.unusable_retries:
            return _TransientError(fault)
        return RefusedError(f"{self.endpoint.url}: {request.unusable_answers} unusable answers, the last: {fault}")

    def _warn(self, state: RetryCallState) -> None:
        """Log a warning once a minute at most. One per request is too many: a busy service answers half with 429."""
        now = time.monotonic()
        if now - self._last_warning >= QUIET_SECONDS and not self._closed.is_set():
            self._last_warning = now
            limit = f"retrying for up to {self.endpoint.give_up_seconds:g} s"
            log.warning("%s does not answer (%s); %s", self.endpoint.url, _failure(state), limit)

    def _give_up_error(self, error: RetryError) -> RemoteError:
        last = error.last_attempt
        return RemoteError(
            f"{self.endpoint.url} gave no answer in {last.attempt_number} attempts "
            f"(give_up_seconds={self.endpoint.give_up_seconds:g}); the last failure: {last.exception()}. "
            f"Restart the service, {self.policy.resume_hint}"
        )


def _wait(state: RetryCallState) -> float:
    drawn = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    return max(drawn, _failure(state).seconds)


def _failure(state: RetryCallState) -> _TransientError:
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, _TransientError)
    return failure


def _retry_after(value: str) -> float:
    """Seconds from now that a Retry-After header names, as a number or a date. 0 if it is neither."""
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _parse_object(content: bytes, max_bytes: int) -> dict[str, Any]:
    """Parse a JSON object. Raises `ValueError`."""
    if len(content) > max_bytes:
        raise ValueError(f"it is longer than {max_bytes:,} bytes")
    # Unlike `json`, orjson refuses NaN, Infinity and 1e999.
    answer = orjson.loads(content)
    if not isinstance(answer, dict):
        raise ValueError(f"it is a {type(answer).__name__}, not an object")
    return answer


def _describe(response: httpx2.Response, content: bytes) -> str:
    """Status and start of an answer, for a message."""
    target = f" to {response.headers.get('Location')}" if response.has_redirect_location else ""
    text = content[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")[:SHOWN_CHARACTERS]
    return f"{response.status_code} {response.reason_phrase}{target} {text!r}"


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"key_variable={variable}: this environment variable is not set, or empty; export it")
    return {"Authorization": f"Bearer {key}"}
