"""A teacher behind an address: whatever answers POST URL/chat/completions as OpenAI's service does (vLLM, SGLang, ...).

A reasoning model may answer with `reasoning_content` (or `reasoning`) beside `content`. With `reasoning = "keep"` the
response is then "<think>\\n" + reasoning + "\\n</think>\\n\\n" + content; with "drop" it is the content alone, and its
tokens are not known, because the service counts those of the reasoning too.

| what the service says                                  | what happens                                         |
|--------------------------------------------------------|------------------------------------------------------|
| no connection, time-out, torn answer, 429, 5xx         | tried again for `give_up_seconds`, then the run ends |
| 200 without JSON, a choice or a text                   | tried 4 more times, then the question is refused     |
| 400, 413, 422; a `finish_reason` content_filter        | the question is refused                              |
| 20 problems refused in a row (`refusals_in_a_row`)     | the run ends: it is not about the problems           |
| any other status                                       | the run ends                                         |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, field_validator

from simplerl.config import DistillSampling
from simplerl.distill.teachers._threads import as_finished
from simplerl.distill.teachers.base import Answer, AnswerEnd, Asked, Teacher, TeacherConfig
from simplerl.errors import RemoteError
from simplerl.http import Client, Endpoint, RefusedError, RetryPolicy

ENDS: Mapping[str, AnswerEnd] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""Finish reasons of services, and ours."""

MAX_ANSWER = 64 << 20
USELESS = 4
SEEDS = 1 << 31
"""Largest seed that every service accepts."""

KEY = "Check the key and that it may use this model (key_variable names the environment variable that holds it)"
REMEDIES = {
    401: KEY,
    403: KEY,
    404: "Check teacher.url, which usually ends in /v1, and teacher.model",
}
AGAIN = "then run the same command again: the answers that arrived are kept, only the others are requested"


class Config(TeacherConfig, Endpoint):
    """Address of the service, and settings of the requests."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"requests_per_minute", "refusals_in_a_row", *Endpoint.model_fields}
    )

    name: Literal["openai"] = "openai"

    url: str
    """Base address, such as http://127.0.0.1:8000/v1."""

    model: str
    """Name of the model at the service."""

    system: str | None = None
    """System prompt. Empty (default): none is sent."""

    prompt: str = "{input}\nPlease reason step by step, and put your final answer within \\boxed{}."
    """Text of the user's message; {input} is replaced by the problem."""

    reasoning: Literal["keep", "drop"] = "keep"
    """Reasoning that comes apart from the content. `keep` (default): put it into the response, in <think> tags. `drop`:
    leave it out."""

    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Seconds for one attempt. A long response takes minutes."""

    give_up_seconds: float = Field(default=7200.0, ge=0)
    """Seconds for all attempts at a question; until then an absent, overloaded or slow service is tried again."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    """Attempts per minute of all threads together, evenly spaced. None (default): no limit."""

    refusals_in_a_row: int = Field(default=20, ge=1)
    """Refused problems in a row that end the run."""

    @field_validator("prompt")
    @classmethod
    def _has_place(cls, text: str) -> str:
        if "{input}" not in text:
            raise ValueError("has no {input}, the place of the problem")
        return text

    @property
    def address(self) -> str:
        return self.url.rstrip("/") + "/chat/completions"


class OpenAITeacher:
    """Asks the service, `concurrency` questions at a time."""

    def __init__(self, config: Config, sampling: DistillSampling) -> None:
        self.config, self.sampling = config, sampling
        policy = RetryPolicy(
            max_answer_bytes=MAX_ANSWER,
            refusal_statuses=frozenset({400, 413, 422}),
            unusable_retries=USELESS,
            requests_per_minute=config.requests_per_minute,
            remedies=REMEDIES,
            resume_hint=AGAIN,
        )
        self._refused: set[str] = set()
        self._client = Client(config.model_copy(update={"url": config.address}), policy)

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Yield answers in the order of arrival; a refusal is held back until an answer shows that the service works.

        Raises `RemoteError` when it gives up, after every answer that still arrived.
        """
        refused: list[Answer] = []
        with closing(as_finished(self.ask, asked, self.config.concurrency)) as answers:
            for answer in answers:
                if answer.finish_reason == "refused":
                    refused.append(answer)
                else:
                    yield answer
                    yield from refused
                    refused.clear()
        yield from refused

    def ask(self, asked: Asked) -> Answer:
        """One answer. Safe from any thread. Raises `RemoteError` if the run must end."""
        question = self.question(asked)
        headers = {"Idempotency-Key": idempotency_key(asked, question)}
        try:
            answer = self._client.post(question, lambda body: read(body, asked.id, self.config.reasoning), headers)
        except RefusedError as error:
            self._count_refusal(asked, error)
            return Answer(asked.id, "", None, "refused", str(error))
        self._refused.clear()
        return answer

    def _count_refusal(self, asked: Asked, error: RefusedError) -> None:
        self._refused.add(asked.problem.id)
        if len(self._refused) >= self.config.refusals_in_a_row:
            raise RemoteError(
                f"{len(self._refused)} problems were refused one after the other (teacher.refusals_in_a_row), the last "
                f"one: {error}. Mend what the service objects to, or raise that limit, {AGAIN}"
            ) from error

    def question(self, asked: Asked) -> dict[str, Any]:
        """The body of the request."""
        user = {"role": "user", "content": self.config.prompt.replace("{input}", asked.problem.question)}
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        return {
            "model": self.config.model,
            "messages": [*system, user],
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_tokens,
            "seed": asked.seed % SEEDS,
        }

    def provenance(self) -> dict[str, Any]:
        return {
            "teacher": self.config.name,
            "url": self.config.url,
            "model": self.config.model,
            "system": self.config.system,
            "prompt": self.config.prompt,
            "reasoning": self.config.reasoning,
        }

    def close(self) -> None:
        self._client.close()


def idempotency_key(asked: Asked, question: Mapping[str, Any]) -> str:
    """An idempotency key: equal for every attempt at a question, in any session, and for nothing else."""
    what = orjson.dumps([asked.seed, asked.id, question], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(what).hexdigest()


# --- answers ----------------------------------------------------------------------------------------------------------


def read(body: Mapping[str, Any], id: str, reasoning: Literal["keep", "drop"]) -> Answer:
    """The answer in a completion. Raises `ValueError` if it holds no response."""
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError(f'"message" is {message!r}, not an object')
    prompt_tokens = _count(body, "prompt_tokens")
    if choice.get("finish_reason") == "content_filter":
        return Answer(id, "", None, "refused", "the service's content filter", prompt_tokens)
    end = ENDS.get(str(choice.get("finish_reason")))
    if end is None:
        raise ValueError(f'"finish_reason" is {choice.get("finish_reason")!r}, not one of {", ".join(ENDS)}')
    text, whole = _text(message, reasoning, end)
    return Answer(id, text, _count(body, "completion_tokens") if whole else None, end, prompt_tokens=prompt_tokens)


def _first_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f'"choices" is {choices!r}, not a list with a choice')
    return choices[0]


def _text(message: Mapping[str, Any], reasoning: Literal["keep", "drop"], end: AnswerEnd) -> tuple[str, bool]:
    """The response, and True if it is everything that the model wrote."""
    content = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    thought = thought.strip() if isinstance(thought, str) else ""
    # a model truncated in its reasoning has no content yet
    if not isinstance(content, str) and not (content is None and end == "length"):
        raise ValueError(f'"content" is {content!r}, not a text')
    content = content or ""
    if not thought:
        return content, True
    if reasoning == "drop":
        return content, False
    return f"<think>\n{thought}\n</think>\n\n{content}", True


def _count(body: Mapping[str, Any], name: str) -> int | None:
    usage = body.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def build(config: Config, sampling: DistillSampling) -> Teacher:
    return OpenAITeacher(config, sampling)
