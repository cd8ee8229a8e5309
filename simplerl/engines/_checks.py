"""Requests that every engine refuses before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from simplerl.errors import EngineError
from simplerl.types import Request


def check_requests(requests: Sequence[Request], vocabulary: int, max_length: int | None) -> None:
    """Raise `EngineError` for the first request that cannot run.

    `vocabulary` is the number of token ids that the model knows. `max_length` bounds prompt and response together;
    None: unbounded.
    """
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise EngineError(f"request {request.id} was submitted twice; ids must differ")
        seen.add(request.id)
        _check_request(request, vocabulary, max_length)


def _check_request(request: Request, vocabulary: int, max_length: int | None) -> None:
    ids, new = request.prompt.token_ids, request.sampling.max_tokens
    if not ids:
        raise EngineError(f"request {request.id} has an empty prompt; it needs at least one token")
    if new < 1:
        raise EngineError(f"request {request.id} asks for max_tokens={new}; it must be at least 1")
    if max(ids) >= vocabulary or min(ids) < 0:
        wrong = max(ids) if min(ids) >= 0 else min(ids)
        raise EngineError(
            f"request {request.id} has token {wrong}, but the model's vocabulary has {vocabulary}; "
            "is this the model's own tokenizer?"
        )
    if max_length is not None and len(ids) + new > max_length:
        raise EngineError(
            f"request {request.id}: {len(ids)} prompt tokens + max_tokens={new} are {len(ids) + new}, beyond the "
            f"model's {max_length} positions; max_tokens={max_length - len(ids)} would fit"
        )
