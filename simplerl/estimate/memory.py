"""Memory that a recipe takes on each kind of worker, by phase: rollout, score, update, weight sync."""

from __future__ import annotations

from dataclasses import dataclass

from simplerl.config import Recipe
from simplerl.environment import GIB
from simplerl.estimate.breakdown import Breakdown, total
from simplerl.estimate.engine_memory import EngineMemory, transfer_buffers
from simplerl.estimate.execution import (
    Device,
    available_threads,
    device_of,
    execution_mode,
    micro_batch_sizes,
    required_models,
)
from simplerl.estimate.learner_memory import LearnerMemory
from simplerl.estimate.shapes import Shape
from simplerl.losses.sizes import MAX_LOGITS

CONTEXT = 1.0 * GIB
"""Bytes of a GPU for the driver's context, the kernels' code and cuBLAS's workspaces. An assumption."""
USABLE = 0.95
"""Fraction of a GPU's memory that a plan may use; the allocator leaves gaps. An assumption."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The processes on one device."""

    role: str
    """"learner", "engine", "all" (both in one process) or "pair" (a process each)."""

    phases: dict[str, Breakdown]
    """Memory of each phase."""

    @property
    def peak(self) -> float:
        """Bytes of the phase that takes most."""
        return max(map(total, self.phases.values()))

    @property
    def peak_phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: total(self.phases[name]))

    def fits(self, memory: float) -> bool:
        """True if it fits a device with this many bytes."""
        return self.peak <= USABLE * memory


def models_in_memory(recipe: Recipe) -> tuple[str, ...]:
    """Names of the models in memory: those the algorithm needs, and the engine's copy of the policy."""
    return required_models(recipe).names


def parameter_counts(models: tuple[str, ...], shape: Shape) -> dict[str, int]:
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
    """The kinds of workers of a recipe.

    One process with everything; with `cluster.ray` a learner and an engine; with `cluster.colocated` a pair of them on
    one device. `memory` is that of a GPU in bytes, of which vLLM takes its share. `threads` are the threads of a CPU.
    """
    device = device or device_of(recipe)
    threads = threads or available_threads()
    learner = learner_memory(recipe, shape, device, threads)
    in_cluster = recipe.cluster.ray is not None
    engine = EngineMemory(recipe, shape, learner.mode, recipe.cluster.engines if in_cluster else 1, threads)
    context = {"context": CONTEXT} if device == "cuda" else {}
    buffers = transfer_buffers(recipe, shape, learner.mode)
    if in_cluster and not recipe.cluster.colocated:
        held = learner.always() | context
        learning = {name: held | parts for name, parts in _learner_phases(learner, buffers).items()}
        answering = {name: context | parts for name, parts in _engine_phases(engine, memory).items()}
        return Worker("learner", learning), Worker("engine", answering)
    contexts = {name: 2 * size if in_cluster else size for name, size in context.items()}
    phases = _shared_device_phases(learner, engine, memory, contexts, buffers=buffers, sleeps=recipe.sleeps)
    return (Worker("pair" if in_cluster else "all", phases),)


def learner_memory(recipe: Recipe, shape: Shape, device: Device, threads: int | None = None) -> LearnerMemory:
    """The memory of a recipe's learner on a device."""
    models, mode = required_models(recipe), execution_mode(recipe, shape, device, threads)
    return LearnerMemory(shape, mode, micro_batch_sizes(recipe, mode, models), models)


def host_bytes(recipe: Recipe, shape: Shape) -> float:
    """Bytes that learners on GPUs offload to the memory of their hosts, of all nodes together."""
    return learner_memory(recipe, shape, "cuda").offloaded_bytes()


def _learner_phases(learner: LearnerMemory, buffers: float = 0.0) -> dict[str, Breakdown]:
    gathered = 4 * learner.shape.head_parameters if learner.mode.sharded else 0
    return {
        "score": learner.scoring(),
        "update": learner.updating(),
        "weight sync": {"workspace": _adapter_merge(learner) + gathered + buffers},
    }


def _adapter_merge(learner: LearnerMemory) -> float:
    """Bytes of an adapter's product and of the merged weight, of the largest matrix."""
    shape, targets = learner.shape, learner.mode.lora_targets
    return 8 * max((shape.matrices[name][0] * shape.matrices[name][1] for name in targets or ()), default=0)


def _engine_phases(engine: EngineMemory, memory: float | None) -> dict[str, Breakdown]:
    rollout = engine.always() | engine.rollout()
    weight_sync = engine.always() | _idle_cache(engine) | {"workspace": engine.weight_sync()}
    return {
        "rollout": _with_reserved_cache(engine, rollout, memory),
        "weight sync": _with_reserved_cache(engine, weight_sync, memory),
    }


def _idle_cache(engine: EngineMemory) -> Breakdown:
    """The KV cache outside of a rollout: vLLM and a CPU keep it, a GPU frees it."""
    return engine.cache() if engine.mode.device == "cpu" or engine.vllm else {}


def _with_reserved_cache(engine: EngineMemory, breakdown: Breakdown, memory: float | None) -> Breakdown:
    """On a GPU vLLM uses the rest of its share as cache."""
    if memory is None or not engine.vllm or engine.mode.device == "cpu":
        return breakdown
    spare = engine.share(memory) - total(breakdown)
    return breakdown | {"KV cache": breakdown["KV cache"] + max(0.0, spare)}


def _shared_device_phases(
    learner: LearnerMemory,
    engine: EngineMemory,
    memory: float | None,
    contexts: Breakdown,
    *,
    buffers: float,
    sleeps: bool,
) -> dict[str, Breakdown]:
    """Learner and engine on one device: while one works, the other keeps its weights, and on a CPU its cache.

    An engine that sleeps keeps no cache, and vLLM no weights either, until the learner sends its own.
    """
    engine_phases = _engine_phases(engine, memory)
    idle = engine.always() | _idle_cache(engine) | {"workspace": 0.0}
    idle = _with_reserved_cache(engine, idle, memory)
    sleeping = {} if engine.vllm else engine.always()
    held = learner.always() | contexts
    phases = {"rollout": held | engine_phases["rollout"]}
    for name, parts in _learner_phases(learner).items():
        phases[name] = held | (sleeping if sleeps and name != "weight sync" else idle) | parts
    workspace = max(phases["weight sync"]["workspace"], engine_phases["weight sync"]["workspace"])
    phases["weight sync"] = phases["weight sync"] | {"workspace": workspace + buffers}
    return phases


PURPOSES = {
    "parameters": "4 bytes per parameter of actor, adapters, critic and reference (float32 master weights)",
    "moments": "per trained parameter 8 bytes with AdamW, 2 and scales in 8 bits, 4 for a matrix of a layer with Muon",
    "gradients": "4 bytes per trained parameter; twice for head and embedding while they are summed",
    "activations": "tensors saved for gradients, of one micro-batch per thread; with checkpoints inputs and one layer",
    "cast weights": "2 bytes per weight of the layers with bfloat16, in forward passes and while activations are saved",
    "gathered layers": "sharded learners: parameters outside of layers and of two layers, and their gradients",
    "logits": f"2 float32 copies of a chunk of {MAX_LOGITS >> 20} M numbers; 4 copies if one chunk holds all",
    "engine copy": "the policy in model.dtype, its head in float32; C kernels: in float32, its matrices twice",
    "KV cache": "sequences decoded at once x tokens (the cache grows by half) x 2 x layers x KV heads x head size",
    "workspace": "the largest temporary tensors: of one layer, of prompts in prefill, of weights in weight sync",
    "context": f"{CONTEXT / GIB:g} GiB of a GPU for its driver and libraries",
}
"""What each part of an estimate holds. A test checks that it names all of them."""

NOTES = (
    "Without cluster.ray one device holds everything. With it every learner (which holds its shard) and every engine",
    "has a device; colocated, a learner and an engine share one. Offloaded activations (model.offload) count for one",
    "layer; offloaded weights, gradients and moments do not count, except for gathered layers.",
)
"""Lines of text: on which device each part is, and what is left out."""


def in_gib(breakdown: Breakdown) -> dict[str, float]:
    """The parts of a breakdown that are not 0, in GiB, and their "total"."""
    return {name: count / GIB for name, count in breakdown.items() if count} | {"total": total(breakdown) / GIB}


def memory_gib(recipe: Recipe, shape: Shape) -> dict[str, dict[str, dict[str, float]]]:
    """Estimated GiB of each worker (see `PURPOSES`): by phase, by purpose, with each phase's "total"."""
    return {
        worker.role: {name: in_gib(parts) for name, parts in worker.phases.items()} for worker in workers(recipe, shape)
    }
