"""What a verifier is: a response and the gold answer in, a `Verdict` out. Nothing here imports torch."""

from __future__ import annotations

from typing import Protocol

from simplerl.types import Verdict


class Verifier(Protocol):
    """Judges final answers. Must not raise on any text: a crash of its own is a verdict `error`."""

    def verify(self, response: str, gold: str) -> Verdict: ...

    def close(self) -> None: ...
