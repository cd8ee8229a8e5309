"""What a verifier is: a response and the gold answer in, a `Verdict` out. Nothing here imports torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from simplerl import plugins
from simplerl.types import Verdict

DEFAULT_VERIFIER = "math"
"""The verifier of evaluations that name none."""

Mode = Literal["reward", "evaluation"]
"""`reward`: the last box or nothing. `evaluation`: the published fallbacks too, for models that do not box."""


class Verifier:
    """Judges final answers. Must not raise on any text: a crash of its own is a verdict `error`.

    A verifier of one's own is one file with a class that has `verify`, and a function `build(config)` that makes it.
    One that waits for something overrides `submit`, so that grading goes on meanwhile. Its file may also have a
    function `same_answer(a, b)`: True if two extracted answers are the same, for majority votes.
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


def evaluation_verifier(name: str) -> Verifier:
    """The shipped verifier `name` as evaluations use it: in the mode `evaluation`, if it has modes."""
    module = plugins.load("verifiers", name)
    mode = {"mode": "evaluation"} if "mode" in module.Config.model_fields else {}
    return module.build(module.Config.model_validate({"name": name} | mode))


def same_answer(verifier_name: str) -> Callable[[str, str], bool]:
    """The verifier's function that tells if two answers are the same; string equality if it has none.

    Verifiers that are not shipped (a user's own file) compare strings too: reading results runs no such file.
    """
    if verifier_name not in plugins.available("verifiers"):
        return operator.eq
    return getattr(plugins.load("verifiers", verifier_name), "same_answer", operator.eq)
