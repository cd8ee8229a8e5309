"""Placement of a run's processes: on GPUs that are reserved all at once, or without GPUs on any node."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simplerl.cluster import ray
from simplerl.cluster.ray import ActorOptions
from simplerl.config import ClusterConfig
from simplerl.errors import ClusterError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

RESERVE_TIMEOUT = 10
"""Seconds in which a run's GPUs must be free. Ray needs one or two to free those of learners that were lost."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Ray's options for each process of a run. A restarted process gets the GPU of the one it replaces."""

    group: PlacementGroup | None = None
    """The run's GPUs. None: a run without GPUs, whose processes may run on any node."""
    learners: Sequence[int] = ()
    """Number of each rank's GPU in the group."""
    engines: Sequence[int] = ()
    """Number of each engine's GPU in the group."""
    gpu_share: float = 1
    """Share of its GPU that each process takes."""

    def learner_options(self, rank: int) -> ActorOptions:
        return self._options(self.learners, rank)

    def engine_options(self, number: int) -> ActorOptions:
        return self._options(self.engines, number)

    def verifier_options(self) -> ActorOptions:
        return {**ray.ANY_NODE, "num_cpus": 1}

    def nodes(self) -> tuple[set[str], set[str]]:
        """Ids of the nodes of learners, and of engines. Without GPUs both are all nodes."""
        if self.group is None:
            return ray.alive_nodes(), ray.alive_nodes()
        node = ray.node_of_gpu(self.group)
        return {node[gpu] for gpu in self.learners}, {node[gpu] for gpu in self.engines}

    def _options(self, gpus: Sequence[int], number: int) -> ActorOptions:
        return ray.ANY_NODE if self.group is None else ray.gpu_options(self.group, gpus[number], self.gpu_share)


@contextmanager
def reserve_gpus(
    config: ClusterConfig, device: str, engines: int, seconds: int = RESERVE_TIMEOUT
) -> Iterator[Placement]:
    """Connect to the cluster and reserve a GPU for every process until the context ends; without CUDA reserve none.

    Colocated: learner i and engine i share one GPU. Verifiers need a core each. Raises `ClusterError` if GPUs or cores
    are not free within `seconds`.
    """
    ray.connect(config)
    _wait_for_cores(config.verifiers, seconds)
    if device != "cuda":
        yield Placement()
        return
    count = config.learners + (0 if config.colocated else engines)
    group = ray.create_gpu_group(count, seconds)
    if group is None:
        raise ClusterError(_too_few_gpus(config, engines, count))
    try:
        gpus = ray.gpus_by_node(group)  # neighbouring ranks exchange the most data
        if config.colocated:
            yield Placement(group, gpus, gpus, gpu_share=0.5)
        else:
            yield Placement(group, gpus[: config.learners], gpus[config.learners :])
    finally:
        ray.remove_gpu_group(group)


def _wait_for_cores(verifiers: int, seconds: int) -> None:
    # Ray frees the cores of verifiers that this run lost after a second or two.
    for seconds_left in reversed(range(seconds)):
        total, free = ray.core_counts()
        if verifiers <= free:
            return
        if verifiers > total or not seconds_left:
            raise ClusterError(
                f"cluster.verifiers={verifiers} need a CPU core each; the cluster has {total:g}, of which {free:g} are "
                "free; lower cluster.verifiers or add nodes"
            )
        time.sleep(1)


def _too_few_gpus(config: ClusterConfig, engines: int, count: int) -> str:
    total, free = ray.gpu_counts()
    settings = f"cluster.learners={config.learners}" + (f" and cluster.engines={engines}" if engines else "")
    settings += " (colocated)" if config.colocated else ""
    return (
        f"{settings} need {count} GPUs; the cluster has {total:g}, of which {free:g} are free; "
        "lower them, add nodes, or wait for the run that holds the others (`ray status` shows it)"
    )
