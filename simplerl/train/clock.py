"""Seconds of each phase of a step, and the phase's progress on the display."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simplerl.train.console import ProgressDisplay
from simplerl.types import GradedRollout, Metrics


class Clock:
    """Times the phases of a step."""

    def __init__(self, display: ProgressDisplay, on_rollout: Callable[[], None]) -> None:
        """`on_rollout` is called after each finished rollout."""
        self.display = display
        self.on_rollout = on_rollout
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def reset(self) -> None:
        """Start a new step."""
        self.seconds.clear()
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[GradedRollout], None]]:
        """Time a phase of `total` items; see `simplerl.types.Phase`. Phases of the same name are added up."""
        self.display.start_phase(name, total=total)
        started = time.perf_counter()
        yield self._count_rollout
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def _count_rollout(self, graded: GradedRollout) -> None:
        self.seconds["grade"] = self.seconds.get("grade", 0.0) + graded.verdict.seconds
        self.display.advance(1)
        self.on_rollout()

    def metrics(self, response_tokens: float) -> Metrics:
        """`time/<phase>` and `time/total` in seconds, and response tokens per second of the whole step."""
        total = time.perf_counter() - self.started
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return times | {"time/total": total, "time/tokens_per_second": response_tokens / total}
