"""Seconds per phase, and the view's progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simplerl.train.console import View
from simplerl.types import GradedRollout, Metrics


class Clock:
    """Times the phases of a step. `on_rollout` hears of each finished rollout."""

    def __init__(self, view: View, on_rollout: Callable[[], None]) -> None:
        self.view = view
        self.on_rollout = on_rollout
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def reset(self) -> None:
        self.seconds.clear()
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[GradedRollout], None]]:
        self.view.phase(name, total=total)
        begun = time.perf_counter()
        yield self._rollout_done
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def _rollout_done(self, graded: GradedRollout) -> None:
        self.seconds["grade"] = self.seconds.get("grade", 0.0) + graded.verdict.seconds
        self.view.advance(1)
        self.on_rollout()

    def metrics(self, response_tokens: float) -> Metrics:
        """time/<phase>, time/total and response tokens per second of the whole step."""
        total = time.perf_counter() - self.started
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return times | {"time/total": total, "time/tokens_per_second": response_tokens / total}
