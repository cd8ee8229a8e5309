"""A cache of responses, keyed by what decides them: weights, prompt, sampling, seed, engine and versions.

One SQLite file for all evaluations. If it cannot be used, evaluations continue without it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import orjson

from simplerl.formatting import replace_surrogates
from simplerl.types import Request, Rollout


def default_path() -> Path:
    """In the folder of `SIMPLERL_CACHE`, or `~/.cache/simplerl`."""
    return Path(os.environ.get("SIMPLERL_CACHE") or Path.home() / ".cache" / "simplerl") / "responses.sqlite"


class ResponseCache:
    """`identity` is what all requests share: the model's hash, the engine with its version and its precision."""

    def __init__(self, path: Path, identity: str, notice: Callable[[str], None]) -> None:
        self.identity, self.notice = identity, notice
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS responses (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, request: Request) -> Rollout | None:
        found = self._execute("SELECT value FROM responses WHERE key = ?", (self._key(request),))
        if not found:
            return None
        value = orjson.loads(found[0][0])
        return Rollout.single_turn(
            request.id,
            request.prompt,
            tuple(value["token_ids"]),
            tuple(value["logprobs"]),
            value["text"],
            value["finish_reason"],
            0,
        )

    def put(self, request: Request, rollout: Rollout) -> None:
        value = {
            "token_ids": rollout.token_ids,
            "logprobs": rollout.sampled_logprobs,
            "text": replace_surrogates(rollout.text),
            "finish_reason": rollout.finish_reason,
        }
        self._execute("INSERT OR REPLACE INTO responses VALUES (?, ?)", (self._key(request), orjson.dumps(value)))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _key(self, request: Request) -> bytes:
        sampling = request.sampling
        # Greedy responses do not depend on the seed.
        drawn = [sampling.top_p, sampling.top_k, request.seed] if sampling.temperature else []
        parts = [
            self.identity,
            request.prompt.token_ids,
            sampling.max_tokens,
            sampling.stop,
            sampling.temperature,
            drawn,
        ]
        return hashlib.sha256(orjson.dumps(parts)).digest()

    def _execute(self, statement: str, values: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: Exception) -> None:
        self.notice(f"the cache of responses cannot be used ({error}); evaluating without it")
        self._database = None
