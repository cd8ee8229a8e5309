"""Where the processes of a run go: to GPUs reserved for all of it at once, or without any all over the cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from simplerl.cluster import ray
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError

RESERVE = 10
"""Seconds in which a run's GPUs must be free; those that its lost learners held take one or two."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What Ray is asked for each process. A process that is begun anew gets the GPU of the one before."""

    group: Any = None
    learners: Sequence[int] = ()
    """By rank: which of the group's GPUs."""
    engines: Sequence[int] = ()
    share: float = 1
    """What each process takes of its GPU."""

    def learner(self, rank: int) -> Mapping[str, Any]:
        return self._where(self.learners, rank)

    def engine(self, number: int) -> Mapping[str, Any]:
        return self._where(self.engines, number)

    def verifier(self) -> Mapping[str, Any]:
        return {**ray.ANYWHERE, "num_cpus": 1}

    def nodes(self) -> tuple[set[str], set[str]]:
        """Those of learners and those of engines; without GPUs either may be anywhere."""
        if self.group is None:
            return ray.nodes(), ray.nodes()
        node = ray.nodes_of(self.group)
        return {node[each] for each in self.learners}, {node[each] for each in self.engines}

    def _where(self, bundles: Sequence[int], number: int) -> Mapping[str, Any]:
        return ray.ANYWHERE if self.group is None else ray.with_gpu(self.group, bundles[number], self.share)


@contextmanager
def reserved(config: ClusterConfig, device: str, engines: int, seconds: int = RESERVE) -> Iterator[Placement]:
    """Joins or begins the cluster and holds a GPU for every process, until the context ends; without CUDA none.

    Colocated, learner i and engine i have one GPU together. Verifiers take a core each.

    Raises `ClusterError` where these are not free in so many seconds.
    """
    ray.start(config)
    _see_that_verifiers_fit(config.verifiers, seconds)
    if device != "cuda":
        yield Placement()
        return
    count = config.learners + (0 if config.colocated else engines)
    group = ray.reserve(count, seconds)
    if group is None:
        raise ClusterError(_too_few(config, engines, count))
    try:
        near = ray.by_node(group)  # ranks next to each other talk the most
        if config.colocated:
            yield Placement(group, near, near, share=0.5)
        else:
            yield Placement(group, near[: config.learners], near[config.learners :])
    finally:
        ray.release(group)


def _see_that_verifiers_fit(verifiers: int, seconds: int) -> None:
    """What the lost ones of this run held is free again in a second or two."""
    for left in reversed(range(seconds)):
        there, free = ray.cores()
        if verifiers <= free:
            return
        if verifiers > there or not left:
            raise ClusterError(
                f"cluster.verifiers={verifiers} take a core each, the cluster has {there:g} and {free:g} of them are "
                "free; lower it or add nodes"
            )
        time.sleep(1)


def _too_few(config: ClusterConfig, engines: int, count: int) -> str:
    there, free = ray.gpus()
    asked = f"cluster.learners={config.learners}" + (f" and cluster.engines={engines}" if engines else "")
    asked += " (colocated)" if config.colocated else ""
    return (
        f"{asked}: {count} GPUs are needed, the cluster has {there:g} and {free:g} of them are free; "
        "lower them, add nodes, or wait for the run that holds the others (`ray status` shows it)"
    )
