"""A trace of one training step: wall time by phase, self time by operator, counted FLOP. Writes nothing to a run."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from simplerl.config import ClusterConfig, Recipe
from simplerl.cpu import trace_kernels, unavailable_reason
from simplerl.errors import CheckpointError
from simplerl.estimate.shapes import Shape, known_shape
from simplerl.estimate.steps import updates_per_step
from simplerl.learner.learner import LocalLearner
from simplerl.learner.models import resolve_model_path
from simplerl.profiling.waste import Operator, Phase, Profile
from simplerl.storage import checkpoint
from simplerl.train.build import rl, services
from simplerl.train.trainer import RLTrainer
from simplerl.types import GradedRollout


def profile_step(recipe: Recipe, run_dir: Path | None, *, warm_up: int = 1, trace: Path | None = None) -> Profile:
    """Profile the step after `warm_up` others, from a run's newest checkpoint if `run_dir` is given.

    The step runs in this process, sampling and training in turns, whatever the recipe says. Its responses depend on the
    recipe's seed alone. Raises `CheckpointError` for a run without a checkpoint.
    """
    train = recipe.train.model_copy(update={"staleness": 0})
    recipe = recipe.model_copy(update={"cluster": ClusterConfig(), "train": train})
    tracer = _Tracer(trace)
    tokenizer = services.load_tokenizer(recipe)
    job = rl.reinforcement_job(recipe, tokenizer, lambda notice: None)
    trainer: Any = job.build(tracer.phase)
    try:
        # critic warm-up steps train one model only
        first = 1 + (recipe.train.critic_warmup_steps if run_dir is None else _restore(trainer, run_dir))
        for step in range(first, first + warm_up):
            trainer.step(step)
        tracer.recording = True
        begun = time.perf_counter()
        result = trainer.step(first + warm_up)
        whole = time.perf_counter() - begun
    finally:
        trainer.engine.close()
        trainer.verifier.close()
    shape = known_shape(resolve_model_path(recipe.model.path))
    return _profile(recipe, trainer, tracer, result.metrics, whole, shape)


def _restore(trainer: RLTrainer, run_dir: Path) -> int:
    """Load a run's newest checkpoint and return its step."""
    found = checkpoint.latest(run_dir)
    if found is None:
        raise CheckpointError(f"{run_dir} has no complete checkpoint to profile from; profile its recipe instead")
    state = checkpoint.load_state(found[0])
    trainer.learner.restore(found[0], state["learner"])
    trainer.algorithm.restore(state["algorithm"])
    trainer.engine.load_weights(trainer.learner.weights(), version=state["step"])
    return int(state["step"])


class _Tracer:
    """Times phases and, once `recording`, traces the operators of each."""

    def __init__(self, trace: Path | None) -> None:
        self.recording = False
        self.seconds: dict[str, float] = {}
        self.operators: dict[str, tuple[Operator, ...]] = {}
        self.rollouts: list[GradedRollout] = []
        self.overhead = 0.0
        self._trace = trace

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[GradedRollout], None]]:
        if not self.recording:
            yield lambda graded: None
            return
        settings = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # type: ignore[attr-defined]
        entered = time.perf_counter()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with torch.profiler.profile(activities=activities, experimental_config=settings) as tracer, trace_kernels():
            begun = time.perf_counter()
            yield self.rollouts.append
            spent = time.perf_counter() - begun
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self.operators[name] = tuple(
            Operator(event.key, event.count, (event.self_cpu_time_total + event.self_device_time_total) / 1e6)
            for event in tracer.key_averages()
            if event.self_cpu_time_total + event.self_device_time_total > 0
        )
        if self._trace is not None:
            tracer.export_chrome_trace(str(self._trace.with_stem(f"{self._trace.stem}-{name}")))
        self.overhead += time.perf_counter() - entered - spent


def _profile(
    recipe: Recipe, trainer: RLTrainer, tracer: _Tracer, metrics: dict[str, float], whole: float, shape: Shape | None
) -> Profile:
    lengths = [(len(g.rollout.prompt.token_ids), len(g.rollout.token_ids)) for g in tracer.rollouts]
    response = sum(length for _, length in lengths)
    learned = sum(prompt + length for prompt, length in lengths)
    once = 0.0 if shape is None else forward_flop(shape, lengths)
    scored = trainer.scores_first(10**9)
    learner = trainer.learner
    assert isinstance(learner, LocalLearner)
    models = 1 + (learner.critic is not None)
    scores = scored + (learner.critic is not None) + (learner.reference is not None)
    work = {
        "rollout": (response, once),
        "score": (learned * bool(scores), once * scores),
        "update": (learned * recipe.train.ppo_epochs, 3 * once * models * recipe.train.ppo_epochs),
    }
    phases = [
        Phase(name, seconds, *work.get(name, (0, 0.0)), tracer.operators[name])
        for name, seconds in tracer.seconds.items()
    ]
    rest = Phase("other", max(0.0, whole - tracer.overhead - sum(tracer.seconds.values())))
    longest = max(length for _, length in lengths)
    memory = {"peak resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        memory["peak CUDA"] = torch.cuda.max_memory_allocated() / 2**30
    return Profile(
        phases=(*phases, rest),
        peak=peak_flops(recipe.model.dtype, str(learner.device)),
        threads=torch.get_num_threads(),
        padding=_padding(learner, lengths),
        live=response / len(lengths) / longest,
        updates=updates_per_step(recipe),
        scored=scored,
        kernels=None
        if learner.fused or learner.device.type != "cpu"
        else unavailable_reason() or "model.kernels or the model",
        memory=memory,
    )


def _padding(learner: LocalLearner, lengths: list[tuple[int, int]]) -> float:
    """Share of padding if the whole batch is laid out at once."""
    from simplerl.batch.layouts import Padded

    if learner.layout is not Padded:
        return 0.0
    width, computed, real = learner.token_budget, 0, 0
    sizes = sorted((prompt + response for prompt, response in lengths), reverse=True)
    while sizes:
        rows = max(1, width // sizes[0])
        part, sizes = sizes[:rows], sizes[rows:]
        computed += len(part) * part[0]
        real += sum(part)
    return 1 - real / computed


def forward_flop(shape: Shape, lengths: list[tuple[int, int]]) -> float:
    """FLOP of a forward pass over sequences of (prompt, response) tokens.

    A token costs 2 x the parameters of the layers' matrices, a response token 2 x vocabulary x hidden for the head,
    and attention 4 x layers x heads x head size x the tokens seen. A backward pass costs twice as much. A prompt counts
    once per response; the embedding lookup counts nothing.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = 2 * shape.hidden * queries + 2 * shape.hidden * keys + 3 * shape.hidden * shape.intermediate
    whole = [prompt + response for prompt, response in lengths]
    seen = sum(size * (size + 1) / 2 for size in whole)
    products = 2 * shape.layers * layer * sum(whole)
    head = 2 * shape.vocab * shape.hidden * sum(response for _, response in lengths)
    return products + head + 4 * shape.layers * queries * seen


def peak_flops(dtype: str, device: str, size: int = 1024) -> float:
    """Peak of matrix products on this machine in FLOP/s: the best of a second of square ones."""
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < 1.0 or best == float("inf"):
        start = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
