"""What every engine refuses before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from simplerl.errors import EngineError
from simplerl.types import Request


def check_requests(requests: Sequence[Request], vocabulary: int, max_length: int | None) -> None:
    """Raises `EngineError` for the first request that cannot be run; `max_length` is prompt and response together."""
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise EngineError(f"request {request.id} was submitted twice; ids must differ")
        seen.add(request.id)
        _check_lengths(request, vocabulary, max_length)


def _check_lengths(request: Request, vocabulary: int, limit: int | None) -> None:
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
    if limit is not None and len(ids) + new > limit:
        raise EngineError(
            f"request {request.id}: {len(ids)} prompt tokens + max_tokens={new} are {len(ids) + new}, beyond the "
            f"model's {limit} positions; max_tokens={limit - len(ids)} would fit"
        )
