"""On how many GPUs a recipe's learners and engines run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.errors import ConfigError
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.memory import Worker, host_bytes, workers
from simplerl.estimate.shapes import Shape
from simplerl.estimate.times import MeanTokens, StepSeconds, step_seconds


@dataclass(frozen=True, slots=True)
class Placement:
    """A recipe on GPUs: the memory of its workers and the duration of a step."""

    recipe: Recipe
    learners: int
    engines: int
    workers: tuple[Worker, ...]
    seconds: StepSeconds
    fits: bool
    host_bytes: float
    """Bytes offloaded to the memory of all nodes together; whether they fit there is unknown."""

    @property
    def single_process(self) -> bool:
        """True if learner and engine are in one process, on one GPU."""
        return self.recipe.cluster.ray is None

    @property
    def largest_worker(self) -> Worker:
        """The worker with the highest peak."""
        return max(self.workers, key=lambda worker: worker.peak)

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings (`--set`) that request this placement."""
        if self.single_process:
            return ()
        shared = ("cluster.colocated=true",) if self.recipe.cluster.colocated else ()
        return ("cluster.ray=auto", f"cluster.learners={self.learners}", f"cluster.engines={self.engines}", *shared)


def place(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: MeanTokens) -> Placement:
    """The placement that the recipe's `cluster` requests."""
    found = workers(recipe, shape, device="cuda", memory=hardware.gpu.memory)
    fits = all(worker.fits(hardware.gpu.memory) for worker in found)
    cluster = recipe.cluster
    learners, engines = (1, 1) if cluster.ray is None else (cluster.learners, cluster.engines)
    seconds = step_seconds(recipe, shape, hardware, tokens)
    return Placement(recipe, learners, engines, found, seconds, fits, host_bytes(recipe, shape))


def best_placement(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: MeanTokens) -> Placement:
    """The placement with the shortest step among placements that fit; if none fits, the one with the lowest peak.

    A recipe that sets `cluster.ray` keeps its placement. Otherwise one GPU runs everything, and several GPUs each run a
    learner or an engine. Raises `ConfigError` if the recipe requests more GPUs than there are.
    """
    cluster = recipe.cluster
    if cluster.ray is not None:
        wanted = cluster.learners + (0 if cluster.colocated else cluster.engines)
        if wanted > hardware.count:
            raise ConfigError(
                f"cluster.learners={cluster.learners} and cluster.engines={cluster.engines} need {wanted} GPUs, "
                f"but --gpus and --nodes give {hardware.count}; leave cluster.ray empty for a suggestion"
            )
        return place(recipe, shape, hardware, tokens)
    if hardware.count == 1:
        return place(recipe, shape, hardware, tokens)
    placements = [place(split, shape, hardware, tokens) for split in _splits(recipe, hardware.count)]
    fitting = [placement for placement in placements if placement.fits]
    if fitting:
        return min(fitting, key=lambda placement: placement.seconds.step)
    return min(placements, key=lambda placement: placement.largest_worker.peak)


def _splits(recipe: Recipe, gpus: int) -> Iterator[Recipe]:
    """The recipe with every split of the GPUs into learners and engines."""
    sharded = all(optimizer.supports_sharding for optimizer in recipe.optimizers.values())
    for learners in range(1, gpus if sharded else 2):
        cluster = {"ray": "auto", "learners": learners, "engines": gpus - learners}
        yield recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=cluster)})
