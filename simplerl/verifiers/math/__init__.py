"""The verifier of mathematical answers: extract, compare exactly, and only where that leaves it open, symbolically.

The exact path runs in the caller, bounded in length. Sympy sees a model's text in worker processes alone, which have
limits of time and memory and are killed when they pass them.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Literal

from pydantic import Field

from simplerl.config import PluginConfig
from simplerl.types import Problem, Rollout, Verdict, VerdictLabel
from simplerl.verifiers.base import Mode, Verifier, done
from simplerl.verifiers.math.compare import asks_for_letter, compare
from simplerl.verifiers.math.extract import extract, last_boxes
from simplerl.verifiers.math.pool import Outcome, SymbolicPool

LABELS: dict[str, VerdictLabel] = {"equal": "correct", "different": "wrong", "unparsed": "wrong"}


class Config(PluginConfig):
    """Mathematical answers."""

    name: Literal["math"] = "math"

    mode: Mode = "reward"
    """`reward`: the last box or nothing. `evaluation`: the published fallbacks too, for models that do not box."""

    workers: int = Field(default=1, ge=0)
    """Processes of the symbolic path, started when first needed. 0: what the exact path leaves open is wrong."""

    cpu_seconds: float = Field(default=2.0, gt=0)
    """Processor time of one symbolic verdict; more is an `error`."""

    wall_seconds: float = Field(default=6.0, gt=0)
    """A symbolic verdict that waits longer is tried once more, alone, and is then an `error`."""

    memory_gib: float = Field(default=1.0, gt=0)
    """Memory of one symbolic verdict; more is an `error`."""


class MathVerifier(Verifier):
    """Safe from any thread. `pool` is None where the symbolic path is switched off."""

    def __init__(self, mode: Mode = "reward", pool: SymbolicPool | None = None) -> None:
        self.mode: Mode = mode
        self.pool = pool

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        """Judge a response against the problem's gold answer."""
        return self.submit_response(rollout.text, problem.answer)

    def submit_response(self, response: str, gold: str) -> Future[Verdict]:
        """Judge the text of a whole response against a bare gold answer."""
        started = time.perf_counter()
        try:
            found = extract(response, self.mode, choice=asks_for_letter(gold))
        except Exception as error:
            return done(Verdict("error", None, f"extract: {type(error).__name__}", time.perf_counter() - started))
        if found.answer is None:
            return done(Verdict("no_answer", None, found.method, time.perf_counter() - started))
        return self._judged(found.answer, gold, found.method, started)

    def submit_answer(self, answer: str, gold: str) -> Future[Verdict]:
        """Judge a bare answer against a bare gold answer."""
        started = time.perf_counter()
        answer = last_boxes(answer, joined=True).answer or answer.strip()
        if not answer:
            return done(Verdict("no_answer", None, "empty", time.perf_counter() - started))
        return self._judged(answer, gold, "answer", started)

    @staticmethod
    def extract_gold(solution: str) -> str:
        """The final answer of a reference solution; empty where there is none, which nothing equals."""
        return extract(solution, "evaluation").answer or ""

    def warm_up(self) -> None:
        """Starts a symbolic process now, in the background, rather than when the first pair needs it."""
        if self.pool is not None:
            self.pool.submit("1", "1")

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()

    def _judged(self, answer: str, gold: str, how: str, started: float) -> Future[Verdict]:
        try:
            found = compare(answer, gold, finished=self.mode == "reward")
        except Exception as error:
            return done(Verdict("error", answer, f"{how}, {type(error).__name__}", time.perf_counter() - started))
        if found.equal is None and self.pool is not None:
            return self._symbolic(self.pool, answer, gold, how, started)
        label = "correct" if found.equal else "wrong"
        return done(Verdict(label, answer, f"{how}, {found.method}", time.perf_counter() - started))

    @staticmethod
    def _symbolic(pool: SymbolicPool, answer: str, gold: str, how: str, started: float) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()

        def decided(outcome: Future[Outcome]) -> None:
            if outcome.cancelled():
                verdict.cancel()
            elif error := outcome.exception():
                verdict.set_exception(error)
            else:
                status = outcome.result().status
                label = LABELS.get(status, "error")
                verdict.set_result(Verdict(label, answer, f"{how}, symbolic {status}", time.perf_counter() - started))

        pool.submit(answer, gold).add_done_callback(decided)
        return verdict


def same_answer(a: str, b: str) -> bool:
    """True if the exact path finds two bare answers equal; pairs that it leaves open count as different."""
    return compare(a, b).equal is True


def build(config: Config) -> MathVerifier:
    if not config.workers:
        return MathVerifier(config.mode)
    pool = SymbolicPool(
        config.workers,
        cpu_seconds=config.cpu_seconds,
        wall_seconds=config.wall_seconds,
        memory_bytes=int(config.memory_gib * 2**30),
    )
    return MathVerifier(config.mode, pool)
