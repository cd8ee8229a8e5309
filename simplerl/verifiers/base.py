"""What a verifier is: a response and the gold answer in, a `Verdict` out. Nothing here imports torch."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Literal

from simplerl.types import Verdict

Mode = Literal["reward", "evaluation"]
"""`reward`: the last box or nothing. `evaluation`: the published fallbacks too, for models that do not box."""


class Verifier:
    """Judges final answers. Must not raise on any text: a crash of its own is a verdict `error`.

    A verifier of one's own is one file with a class that has `verify`, and a function `build(config)` that makes it.
    One that waits for something overrides `submit`, so that grading goes on meanwhile.
    """

    def verify(self, response: str, gold: str) -> Verdict:
        """The verdict on a whole response, against a bare gold answer."""
        return self.submit(response, gold).result()

    def submit(self, response: str, gold: str) -> Future[Verdict]:
        """The verdict as soon as there is one; safe from any thread."""
        return done(self.verify(response, gold))

    def close(self) -> None:
        """Ends whatever the verifier keeps running. A closed verifier is of no use any more."""


def done(verdict: Verdict) -> Future[Verdict]:
    """A future that needs no waiting."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future
