"""Questions to a service: JSON posted to one address, an object back, asked again while the trouble may pass."""

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

MAX_ANSWER = 1 << 20
"""Bytes of an answer at most, unless a kind of service says otherwise."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before an attempt are drawn evenly from 0 to a limit that starts here, doubles, and ends there."""

QUIET_SECONDS = 60.0
"""Between two lines that say that a service does not answer."""

SHOWN = 200
AGAIN = "then run the same command: a run goes on from its last checkpoint"

T = TypeVar("T")
log = logging.getLogger(__name__)


class Endpoint(Frozen):
    """Where a service is, and how patiently it is asked."""

    url: str
    """Address, http:// or https://, that answers a posted JSON object with one. Redirects are not followed."""

    timeout_seconds: float = Field(default=60.0, gt=0)
    """For one attempt."""

    give_up_seconds: float = Field(default=600.0, ge=0)
    """For all attempts: a service that is away, overloaded or slow is asked again until then; 0 asks once."""

    concurrency: int = Field(default=16, ge=1)
    """Questions asked at the same time."""

    key_variable: str | None = None
    """Environment variable that holds a key, sent as `Authorization: Bearer KEY`. The key itself is never stored."""

    @field_validator("url")
    @classmethod
    def _address(cls, text: str) -> str:
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL as error:
            raise ValueError(f"is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must be http://HOST/... or https://HOST/...")
        if url.userinfo:
            raise ValueError("a name and a password would be stored with the recipe; use key_variable")
        return text


class RefusedError(RemoteError):
    """This question was refused; others may be answered, and the client goes on."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a kind of service wants to be asked, and what its refusals mean.

    An answer has `max_answer` bytes at most. The statuses in `refusals` refuse one question and say nothing of others.
    An answer of no use is asked for again `useless` times, then the question counts as refused; with None, for a
    service that always gives the same answer, it ends the client. `per_minute` attempts of all threads together,
    evenly spaced; None: as they come. `remedies` say what mends a refusal that ends the client, by its status, and
    `again` what to do then.
    """

    max_answer: int = MAX_ANSWER
    refusals: frozenset[int] = frozenset()
    useless: int | None = None
    per_minute: float | None = None
    remedies: Mapping[int, str] = field(default_factory=dict)
    again: str = AGAIN


class _Pace:
    """Lets threads through one by one, a fixed time apart."""

    def __init__(self, per_minute: float | None) -> None:
        self.seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, over: threading.Event) -> None:
        """Until it is the caller's turn, or `over` is set."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self.seconds
        over.wait(max(0.0, turn - time.monotonic()))


@dataclass(slots=True)
class _Question:
    """What is asked until `read` can use the answer; `useless` counts those it could not."""

    body: bytes
    headers: Mapping[str, str]
    read: Callable[[dict[str, Any]], Any]
    useless: int = 0


class _Passing(Exception):
    """A failure that may pass. `seconds`: how long the service asked to be left alone."""

    def __init__(self, text: str, seconds: float = 0.0) -> None:
        super().__init__(text)
        self.seconds = seconds


class Client:
    """Asks one endpoint, from any thread. After `close`, or once it gave up on a question, it stops asking again."""

    def __init__(self, endpoint: Endpoint, manners: RetryPolicy | None = None) -> None:
        self.endpoint = endpoint
        self.manners = manners or RetryPolicy()
        self._over = threading.Event()
        self._pace = _Pace(self.manners.per_minute)
        self._said = -QUIET_SECONDS
        self._http = httpx2.Client(
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"} | _key(endpoint.key_variable),
            timeout=endpoint.timeout_seconds,
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        )

    def ask(
        self, question: Mapping[str, Any], read: Callable[[dict[str, Any]], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """What `read` makes of the answer; it raises `ValueError` for an object it cannot use.

        Raises `RemoteError`: at once for a refusal (3xx, 4xx) and for an answer of no use (no JSON object, NaN, too
        long), after `give_up_seconds` where connections fail, time out, or end in 429 or 5xx. Where the manners say
        that it concerns this question alone, a `RefusedError`.
        """
        body = to_utf8(json.dumps(question, ensure_ascii=False))
        self._pace.wait(self._over)
        try:
            return self._patience()(self._attempt, _Question(body, headers or {}, read))
        except RetryError as error:
            self._over.set()
            raise self._gave_up(error) from error.last_attempt.exception()
        except RefusedError:
            raise
        except RemoteError:
            self._over.set()
            raise

    def close(self) -> None:
        """Ends the waiting of all threads that ask. A question under way ends within `timeout_seconds`."""
        self._over.set()
        self._http.close()

    def _patience(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(_Passing),
            wait=_wait,
            stop=stop_before_delay(self.endpoint.give_up_seconds) | stop_when_event_set(self._over),
            sleep=self._sleep,
            before_sleep=self._say,
        )

    def _sleep(self, seconds: float) -> None:
        sleep_using_event(self._over)(seconds)
        self._pace.wait(self._over)

    def _attempt(self, question: _Question) -> Any:
        try:
            response, content = self._post(question)
        except httpx2.RequestError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise _Passing(_shown(response, content), _retry_after(response.headers.get("Retry-After", "")))
        if not response.is_success:
            raise self._refused(response, content)
        try:
            return question.read(_object(content, self.manners.max_answer))
        except ValueError as error:
            raise self._useless(question, f"no use in {_shown(response, content)}: {error}") from None

    def _post(self, question: _Question) -> tuple[httpx2.Response, bytes]:
        """Status line and content. No more is read than it takes to see that it is too much, or too slow."""
        deadline = time.monotonic() + self.endpoint.timeout_seconds
        content = b""
        call = self._http.stream("POST", self.endpoint.url, content=question.body, headers=dict(question.headers))
        with call as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > self.manners.max_answer:
                    break
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout(f"the answer took longer than {self.endpoint.timeout_seconds:g} s")
        return response, content

    def _refused(self, response: httpx2.Response, content: bytes) -> RemoteError:
        status, shown = response.status_code, _shown(response, content)
        if status in self.manners.refusals:
            return RefusedError(f"{self.endpoint.url} refused this question: it answered {shown}")
        remedy = self.manners.remedies.get(status, "Mend it there")
        return RemoteError(f"{self.endpoint.url} refused: it answered {shown}. {remedy}, {self.manners.again}")

    def _useless(self, question: _Question, fault: str) -> Exception:
        """An answer of no use: asked for again, refused, or the end, as the manners say."""
        if self.manners.useless is None:
            return RemoteError(f"{self.endpoint.url}: {fault}. Mend it there, {self.manners.again}")
        question.useless += 1
        if question.useless <= self.manners.useless:
            return _Passing(fault)
        return RefusedError(f"{self.endpoint.url}: {question.useless} answers of no use, the last: {fault}")

    def _say(self, state: RetryCallState) -> None:
        """A line a minute at most, not one per question: a busy service says 429 to every other one."""
        now = time.monotonic()
        if now - self._said >= QUIET_SECONDS and not self._over.is_set():
            self._said = now
            patience = f"asking again for up to {self.endpoint.give_up_seconds:g} s"
            log.warning("%s does not answer (%s); %s", self.endpoint.url, _failure(state), patience)

    def _gave_up(self, error: RetryError) -> RemoteError:
        last = error.last_attempt
        return RemoteError(
            f"{self.endpoint.url} gave no answer in {last.attempt_number} attempts "
            f"(give_up_seconds={self.endpoint.give_up_seconds:g}); the last failure: {last.exception()}. "
            f"Start it again, {self.manners.again}"
        )


def _wait(state: RetryCallState) -> float:
    drawn = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    return max(drawn, _failure(state).seconds)


def _failure(state: RetryCallState) -> _Passing:
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, _Passing)
    return failure


def _retry_after(value: str) -> float:
    """Seconds from now: the header holds a number or a date. 0 where it can be read as neither."""
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _object(content: bytes, most: int) -> dict[str, Any]:
    if len(content) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    # Unlike `json`, orjson refuses NaN, Infinity and 1e999.
    answer = orjson.loads(content)
    if not isinstance(answer, dict):
        raise ValueError(f"it is a {type(answer).__name__}, not an object")
    return answer


def _shown(response: httpx2.Response, content: bytes) -> str:
    """Status and beginning of an answer, for a message."""
    place = f" to {response.headers.get('Location')}" if response.has_redirect_location else ""
    text = content[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
    return f"{response.status_code} {response.reason_phrase}{place} {text!r}"


def _key(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"key_variable={variable}: there is no such environment variable, or it is empty; export it")
    return {"Authorization": f"Bearer {key}"}
