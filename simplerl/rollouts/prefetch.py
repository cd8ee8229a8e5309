"""The rollout batches of a run, in order: sampled when asked for, or while the learner trains on earlier ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from simplerl.config import TrainingRecipe
from simplerl.engines.base import Engine
from simplerl.rollouts.collect import Groups, RolloutCollector
from simplerl.rollouts.serialise import pack, unpack
from simplerl.rollouts.weight_sync import WeightSync
from simplerl.storage.checkpoint import load_tensors, save_tensors
from simplerl.types import GradedRollout, Metrics, Phase

PREFETCHED = "prefetched"
"""Name of the checkpoint's file with batches sampled and not yet trained on."""


class RolloutSource(Protocol):
    """Gives a trainer its rollout batches and keeps the engine's weights as old as they should be."""

    def take(self, step: int) -> tuple[Groups, Metrics]:
        """Graded groups [P][G] of batch `step`, and metrics of their sampling. Waits for them."""
        ...

    def after_update(self, step: int, groups: Groups, *, needs_weights: bool) -> Metrics:
        """Note that batch `step` was trained on. `needs_weights`: the engine must hold the new weights now."""
        ...

    def save(self, folder: Path) -> None:
        """Write batches that were sampled and not yet trained on into a checkpoint's folder."""
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    def close(self) -> None:
        """Stop sampling."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutsOnDemand:
    """Sampling and training take turns (`train.staleness` 0): every batch is sampled by the newest weights."""

    collector: RolloutCollector
    weights: WeightSync
    phase: Phase

    def take(self, step: int) -> tuple[Groups, Metrics]:
        groups = self.collector.collect(step, self.phase)
        sleep_engine(self.collector.recipe, self.collector.engine)
        return groups, {}

    def after_update(self, step: int, groups: Groups, *, needs_weights: bool) -> Metrics:
        return self.weights.sync_weights(step, groups[0][0].rollout.prompt)

    def save(self, folder: Path) -> None:
        pass

    def restore(self, folder: Path) -> None:
        pass

    def close(self) -> None:
        pass


class Cancelled(Exception):
    """Raised in the sampling thread when the run ends."""


@dataclass(frozen=True, slots=True)
class Prefetched:
    """A rollout batch and the seconds that sampling it took."""

    groups: Groups
    seconds: float = 0.0


class RolloutPrefetcher:
    """Samples batches in a thread while the learner trains on earlier ones.

    Each batch is sampled by weights exactly `train.staleness` updates older than those it is trained on; which ones
    depends on the batch's number alone, never on timing.
    """

    def __init__(self, collector: RolloutCollector, weights: WeightSync, phase: Phase, steps: int) -> None:
        self._collector, self._weights, self._phase, self._steps = collector, weights, phase, steps
        self._staleness = collector.recipe.train.staleness
        self._batches: dict[int, Future[Prefetched]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._closing = threading.Event()

    def take(self, step: int) -> tuple[Groups, Metrics]:
        weights, metrics = self._weights, Metrics()
        if step in self._batches:
            batch = self._wait(step)
            if self._staleness == 1 and not weights.is_current:  # nothing else is being sampled, so the engine is idle
                metrics = weights.sync_weights(step - 1, batch.groups[0][0].rollout.prompt)
        # Batch `step` + staleness starts from the current weights, which are then `staleness` updates old.
        load = None if weights.is_current else weights.delayed_sync(step - 1)
        for number in range(step, min(step + self._staleness, self._steps) + 1):
            if number not in self._batches:
                self._batches[number] = self._thread.submit(self._sample, number, load)
                load = None
        batch = self._wait(step)
        graded = [each for group in batch.groups for each in group]
        metrics["staleness"] = fmean(step - 1 - each.rollout.policy_version for each in graded)
        metrics |= {"time/rollout": batch.seconds, "time/grade": sum(each.verdict.seconds for each in graded)}
        return batch.groups, metrics

    def after_update(self, step: int, groups: Groups, *, needs_weights: bool) -> Metrics:
        self._weights.is_current = False
        del self._batches[step]
        if not needs_weights:
            return {}
        self._sampled()
        return self._weights.sync_weights(step, groups[0][0].rollout.prompt)

    def save(self, folder: Path) -> None:
        """See `RolloutSource.save`. Waits for the batch that is being sampled."""
        if batches := self._sampled():
            save_tensors(folder / f"{PREFETCHED}.safetensors", pack(batches, self._collector.stream.items))

    def restore(self, folder: Path) -> None:
        if (folder / f"{PREFETCHED}.safetensors").is_file():
            saved = load_tensors(folder, PREFETCHED)
            for number, groups in unpack(saved, self._collector.stream.items).items():
                self._batches[number] = Future()
                self._batches[number].set_result(Prefetched(groups))

    def close(self) -> None:
        """Stop the thread at its next response; the batch it was sampling is lost."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _wait(self, step: int) -> Prefetched:
        with self._phase("wait", self._collector.recipe.rollout.sequences):
            return self._batches[step].result()

    def _sampled(self) -> dict[int, Groups]:
        """Wait until nothing is being sampled; the batches that were sampled without an error."""
        batches = sorted(self._batches.items())
        return {number: batch.result().groups for number, batch in batches if batch.exception() is None}

    def _sample(self, number: int, load: Callable[[], None] | None) -> Prefetched:
        started = time.perf_counter()
        if load is not None:
            load()
        return Prefetched(self._collector.collect(number, self._untimed), time.perf_counter() - started)

    @contextmanager
    def _untimed(self, name: str, total: int) -> Iterator[Callable[[GradedRollout], None]]:
        yield self._stop_if_closing

    def _stop_if_closing(self, graded: GradedRollout) -> None:
        if self._closing.is_set():
            raise Cancelled


def sleep_engine(recipe: TrainingRecipe, engine: Engine) -> None:
    """Let the engine free its memory until the next weight sync, if `engine.sleep` asks for it."""
    if recipe.sleeps:
        engine.sleep()
