"""The memory that a recipe takes on each worker, phase by phase: rollout, score, update, weight sync."""

from __future__ import annotations

import os
from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.environment import GIB
from simplerl.estimate.engine_memory import Engine, in_chunks
from simplerl.estimate.learner_memory import Learner, Parts, total
from simplerl.estimate.load import Device, device_of, load_of, models_of, way_of
from simplerl.estimate.shapes import Shape
from simplerl.losses.sizes import MAX_LOGITS

CONTEXT = 1.0 * GIB
"""Bytes of a GPU that the driver's context, the kernels' code and cuBLAS's workspaces take. An assumption."""
USABLE = 0.95
"""Share of a GPU's memory that may be planned for: the allocator leaves gaps. An assumption."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What shares a device: "all" (learner and engine in one process), "pair" (in two), "learner" or "engine"."""

    role: str
    phases: dict[str, Parts]
    """Bytes by phase and by what they are for."""

    @property
    def peak(self) -> float:
        """Bytes in the phase that takes the most."""
        return max(map(total, self.phases.values()))

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: total(self.phases[name]))

    def fits(self, memory: float) -> bool:
        """Whether it fits a device of so many bytes."""
        return self.peak <= USABLE * memory


def models_held(recipe: Recipe) -> tuple[str, ...]:
    """The models in memory: what the algorithm asks for, and the engine's copy of the policy."""
    return models_of(recipe).names


def parameters_held(models: tuple[str, ...], shape: Shape) -> dict[str, int]:
    """Parameters of each model, without adapters."""
    return {name: shape.critic_parameters if name == "critic" else shape.parameters for name in models}


def workers(
    recipe: Recipe,
    shape: Shape,
    *,
    device: Device | None = None,
    memory: float | None = None,
    threads: int | None = None,
) -> tuple[Worker, ...]:
    """The kinds of workers of a recipe: one process with everything, or with `cluster.ray` a learner and an engine, or
    colocated a pair of them.

    `memory` is that of a GPU in bytes, of which vLLM takes its share; `threads` are the cores of a CPU.
    """
    device = device or device_of(recipe)
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    models, way = models_of(recipe), way_of(recipe, shape, device, threads)
    learner = Learner(shape, way, load_of(recipe, way, models), models)
    spread = recipe.cluster.ray is not None
    engine = Engine(recipe, shape, way, recipe.cluster.engines if spread else 1, threads)
    own = {"context": CONTEXT} if device == "cuda" else {}
    chunks = in_chunks(recipe, shape, way)
    if spread and not recipe.cluster.colocated:
        learning = {name: learner.always() | own | parts for name, parts in _learning(learner, chunks).items()}
        answering = {name: own | parts for name, parts in _answering(engine, memory).items()}
        return Worker("learner", learning), Worker("engine", answering)
    contexts = {name: 2 * size if spread else size for name, size in own.items()}
    together = _together(learner, engine, memory, contexts, chunks=chunks, asleep=recipe.sleeps)
    return (Worker("pair" if spread else "all", together),)


def on_host(recipe: Recipe, shape: Shape) -> float:
    """Bytes that learners with CUDA keep in their hosts' memory, of all nodes together."""
    models, way = models_of(recipe), way_of(recipe, shape, "cuda")
    return Learner(shape, way, load_of(recipe, way, models), models).on_host()


def _learning(learner: Learner, chunks: float = 0.0) -> dict[str, Parts]:
    return {
        "score": learner.scoring(),
        "update": learner.updating(),
        "weight sync": {
            "workspace": _merging(learner) + (4 * learner.shape.head if learner.way.sharded else 0) + chunks
        },
    }


def _merging(learner: Learner) -> float:
    """Adapters' product, and the weight it is added to, of the largest matrix."""
    shape, adapted = learner.shape, learner.way.adapted
    return 8 * max((shape.linear[name][0] * shape.linear[name][1] for name in adapted or ()), default=0)


def _answering(engine: Engine, memory: float | None) -> dict[str, Parts]:
    rollout = engine.always() | engine.rollout()
    sync_weights = engine.always() | _resting(engine) | {"workspace": engine.sync_weights()}
    return {"rollout": _reserved(engine, rollout, memory), "weight sync": _reserved(engine, sync_weights, memory)}


def _resting(engine: Engine) -> Parts:
    """The cache outside of a rollout: kept on a CPU and by vLLM, given back on a GPU."""
    return engine.cache() if engine.way.device == "cpu" or engine.vllm else {}


def _reserved(engine: Engine, parts: Parts, memory: float | None) -> Parts:
    """What vLLM takes of its share of a GPU without need becomes cache."""
    if memory is None or not engine.vllm or engine.way.device == "cpu":
        return parts
    spare = engine.share(memory) - total(parts)
    return parts | {"KV cache": parts["KV cache"] + max(0.0, spare)}


def _together(
    learner: Learner, engine: Engine, memory: float | None, own: Parts, *, chunks: float, asleep: bool
) -> dict[str, Parts]:
    """Learner and engine on one device: each works while the other's weights, and a CPU's cache, stay.

    An engine that sleeps keeps no cache, and vLLM no weights either, until the learner hands its own over.
    """
    answering, idle = _answering(engine, memory), engine.always() | _resting(engine)
    idle = _reserved(engine, idle | {"workspace": 0.0}, memory)
    always = learner.always() | own
    sleeping = {} if engine.vllm else engine.always()
    phases = {"rollout": always | answering["rollout"]}
    for name, parts in _learning(learner).items():
        phases[name] = always | (sleeping if asleep and name != "weight sync" else idle) | parts
    more = {"workspace": max(phases["weight sync"]["workspace"], answering["weight sync"]["workspace"]) + chunks}
    phases["weight sync"] = phases["weight sync"] | more
    return phases


FORMULA = f"""\
without cluster.ray all of this is on one device; with it, on each learner's (sharded) and on each engine's,
or of a pair on one where they are colocated
parameters     4 bytes each of actor, adapters, critic and reference (float32 masters)
moments        8 bytes a trained parameter (AdamW), 2 with scales in 8 bits, 4 of a layer's matrix with Muon; with
               adapters the actor's are the only ones trained of it
gradients      4 bytes a trained parameter; of the head and the embedding once more while they are summed
activations    what the operations of every layer keep for the gradient, of one micro-batch a lane; with gradient
               checkpointing 4 hidden bytes a token and layer, and one layer whole
cast weights   2 bytes a weight of the layers, with bfloat16: in a forward pass, and where activations are kept
               model.offload: activations but one layer's, or a cluster's weights, moments and gradients, are not here
gathered       with several learners: what is outside of layers and two layers, whole, in float32, with their gradients
logits         2 float32 copies of one chunk of {MAX_LOGITS >> 20} M elements, 4 where all are fewer
engine copy    the policy in model.dtype, its head in float32; with the C kernels in float32, and its matrices once more
KV cache       sequences decoded at once x tokens, grown by halves, x 2 x layers x KV heads x head size
workspace      the largest moment beside those: one layer's work, prompts on their way into the cache, weights that move
context        {CONTEXT / GIB:g} GiB of a GPU that its driver and libraries take"""


def in_gib(parts: Parts) -> dict[str, float]:
    """The parts in GiB with their sum under "total", without those that are nothing."""
    return {name: count / GIB for name, count in parts.items() if count} | {"total": total(parts) / GIB}


def memory(recipe: Recipe, shape: Shape) -> dict[str, dict[str, dict[str, float]]]:
    """Estimated GiB of each worker by `FORMULA`, phase by phase, part by part, with each phase's "total"."""
    return {
        worker.role: {name: in_gib(parts) for name, parts in worker.phases.items()} for worker in workers(recipe, shape)
    }
