"""Where a recipe's learners and engines go on given GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.errors import ConfigError
from simplerl.estimate.hardware import Hardware
from simplerl.estimate.memory import Worker, on_host, workers
from simplerl.estimate.shapes import Shape
from simplerl.estimate.times import Seconds, Tokens, seconds


@dataclass(frozen=True, slots=True)
class Placement:
    """A recipe on GPUs: its workers' memory, and the seconds of a step."""

    recipe: Recipe
    learners: int
    engines: int
    workers: tuple[Worker, ...]
    seconds: Seconds
    fits: bool
    host: float
    """Bytes that wait in the memory of all nodes; whether they fit there is not known."""

    @property
    def together(self) -> bool:
        """Whether learner and engine are in one process, on one GPU."""
        return self.recipe.cluster.ray is None

    @property
    def largest(self) -> Worker:
        """The worker that takes the most."""
        return max(self.workers, key=lambda worker: worker.peak)

    @property
    def settings(self) -> tuple[str, ...]:
        """The `--set` that ask for it."""
        if self.together:
            return ()
        shared = ("cluster.colocated=true",) if self.recipe.cluster.colocated else ()
        return ("cluster.ray=auto", f"cluster.learners={self.learners}", f"cluster.engines={self.engines}", *shared)


def placed(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: Tokens) -> Placement:
    """The recipe where its `cluster` says."""
    found = workers(recipe, shape, device="cuda", memory=hardware.gpu.memory)
    fits = all(worker.fits(hardware.gpu.memory) for worker in found)
    cluster = recipe.cluster
    learners, engines = (1, 1) if cluster.ray is None else (cluster.learners, cluster.engines)
    time = seconds(recipe, shape, hardware, tokens)
    return Placement(recipe, learners, engines, found, time, fits, on_host(recipe, shape))


def best(recipe: Recipe, shape: Shape, hardware: Hardware, tokens: Tokens) -> Placement:
    """The placement with the shortest step of those that fit; if none does, that with the smallest peak.

    One GPU does everything. Several have a learner or an engine each, and all of them are used; a recipe that says
    itself how many there are is left as it is. Raises `ConfigError` where it asks for more GPUs than there are.
    """
    cluster = recipe.cluster
    if cluster.ray is not None:
        wanted = cluster.learners + (0 if cluster.colocated else cluster.engines)
        if wanted > hardware.count:
            raise ConfigError(
                f"cluster.learners={cluster.learners} and cluster.engines={cluster.engines} need {wanted} GPUs, "
                f"--gpus and --nodes say {hardware.count}; leave cluster.ray empty for a suggestion"
            )
        return placed(recipe, shape, hardware, tokens)
    if hardware.count == 1:
        return placed(recipe, shape, hardware, tokens)
    found = [placed(each, shape, hardware, tokens) for each in _splits(recipe, hardware.count)]
    fitting = [each for each in found if each.fits]
    if fitting:
        return min(fitting, key=lambda each: each.seconds.step)
    return min(found, key=lambda each: each.largest.peak)


def _splits(recipe: Recipe, gpus: int) -> Iterator[Recipe]:
    sharded = all(optimizer.supports_sharding for optimizer in recipe.optimizers.values())
    for learners in range(1, gpus if sharded else 2):
        cluster = {"ray": "auto", "learners": learners, "engines": gpus - learners}
        yield recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update=cluster)})
