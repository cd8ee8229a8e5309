"""Measured peak memory of the learner and of the embedded engine, beside the estimate of `simplerl plan`.

    python benchmarks/memory.py [--held-out] [--cases "NAME;..."] [--threads 2]

Every case runs in a process of its own: a random Qwen2 model, the real `Learner`, responses of full length. A first
update allocates the moments. Then the peaks of scoring and of a second update are measured, above the memory that the
process had before it loaded a model. The allocator returns freed memory at once (MALLOC_MMAP_THRESHOLD_,
MALLOC_TRIM_THRESHOLD_), so that resident memory is allocated memory. Prints JSON lines, then a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import make_model
from _contest import emit, print_table
from _counting import Shape

MIB = 1 << 20
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
SIZES = {
    "24m": (512, 2048, 6, 8, 4),
    "84m": (768, 3072, 10, 12, 4),
    "150m": (1024, 4096, 10, 16, 4),
    "wide": (256, 1024, 4, 4, 2),
}
"""Hidden size, MLP size, layers, query heads, KV heads."""


@dataclass(frozen=True)
class Case:
    """One recipe and model that is measured."""

    name: str
    size: str
    """A key of `SIZES`."""

    vocab: int
    tokens: tuple[int, int]
    """Tokens of a prompt, and of a response."""

    counts: tuple[int, int]
    """Prompts, and responses to each."""

    micro_batch_tokens: int
    set: tuple[str, ...] = ()
    """Overrides of the recipe."""

    cpu_threads: int | None = 1
    """None: the default."""

    ppo_epochs: int = 2
    """With 1 the policy is not scored before its update."""

    critic: bool = False
    engine: bool = False

    @property
    def phases(self) -> tuple[str, ...]:
        if self.engine:
            return ("rollout",)
        return ("score", "update") if self.critic or self.ppo_epochs > 1 else ("update",)


TORCH, CHECKPOINTS = "model.kernels=torch", "model.gradient_checkpointing=true"
LORA, HALF = "model.lora.rank=16", "model.dtype=bfloat16"
CASES = (
    Case("kernels, 2 threads", "24m", 8192, (64, 448), (1, 8), 2048, cpu_threads=None),
    Case("kernels, 2 threads, critic", "24m", 8192, (64, 448), (1, 8), 2048, cpu_threads=None, critic=True),
    Case(
        "kernels, critic's forward pass kept",
        "84m",
        8192,
        (64, 448),
        (1, 8),
        8192,
        cpu_threads=None,
        ppo_epochs=1,
        critic=True,
    ),
    Case("kernels", "150m", 8192, (64, 448), (1, 8), 1856),
    Case("torch", "24m", 8192, (32, 224), (1, 8), 1024, (TORCH,)),
    Case("torch, critic, one micro-batch", "wide", 8192, (32, 224), (1, 4), 1024, (TORCH,), critic=True),
    Case("torch, checkpoints", "24m", 8192, (32, 224), (1, 8), 1024, (TORCH, CHECKPOINTS)),
    Case("torch, 152 K words, 1 x 1,024", "wide", 151_936, (64, 1024), (1, 2), 1088, (TORCH,)),
    Case("kernels, 152 K words, 2 x 1,024", "wide", 151_936, (64, 1024), (1, 2), 4400),
    Case("torch, LoRA", "wide", 8192, (32, 224), (1, 8), 1024, (TORCH, LORA)),
    Case("torch, bfloat16", "24m", 8192, (16, 48), (1, 4), 128, (TORCH, HALF)),
    Case("torch, bfloat16, LoRA, larger", "84m", 8192, (16, 48), (1, 4), 128, (TORCH, HALF, LORA)),
    Case("engine, kernels", "24m", 8192, (128, 512), (4, 8), 2048, ("engine.max_batch=32",), engine=True),
    Case("engine, torch", "wide", 8192, (256, 512), (4, 8), 2048, (TORCH, "engine.max_batch=32"), engine=True),
)
# Not measured until the formulas were final.
HELD_OUT = (
    Case("kernels, checkpoints", "24m", 8192, (32, 480), (1, 8), 1952, (CHECKPOINTS,)),
    Case("kernels, critic", "24m", 32_000, (64, 448), (1, 4), 960, critic=True),
    Case("torch, 66 K words", "wide", 65_536, (64, 448), (1, 4), 1024, (TORCH,)),
    Case("torch, critic, checkpoints", "84m", 8192, (32, 224), (1, 4), 512, (TORCH, CHECKPOINTS), critic=True),
    Case("torch, LoRA, checkpoints", "84m", 8192, (32, 224), (1, 4), 512, (TORCH, LORA, CHECKPOINTS)),
    Case("torch, reference", "24m", 8192, (32, 224), (1, 8), 1024, (TORCH, "algorithm.kl_loss_coef=0.01")),
    Case("torch, 152 K words, 1 x 4,096", "wide", 151_936, (64, 4096), (1, 2), 4160, (TORCH,)),
    Case("torch, bfloat16, LoRA", "24m", 8192, (16, 48), (1, 4), 128, (TORCH, HALF, LORA)),
    Case("engine, 66 K words", "wide", 65_536, (64, 320), (2, 8), 2048, (TORCH, "engine.max_batch=16"), engine=True),
)


# --- the measured process ---------------------------------------------------------------------------------------------


def resident() -> int:
    """Resident bytes of this process, without pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this needs Linux 4.5 or later")


@contextmanager
def record_peak(peaks: dict[str, int], name: str, base: int) -> Iterator[None]:
    """Write the peak of resident bytes above `base` into `peaks`, sampled every two milliseconds."""
    stop, peak = threading.Event(), [resident()]

    def sample() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    peaks[name] = peak[0] - base


def recipe_of(case: Case, model: str) -> Any:
    from simplerl.config import Recipe, apply_overrides, validate_recipe

    sequences = math.prod(case.counts)
    table: dict[str, Any] = {
        "model": {"path": model, "device": "cpu"},
        "data": {"source": {"name": "arithmetic"}, "max_prompt_tokens": case.tokens[0]},
        "rollout": {
            "prompts_per_step": case.counts[0],
            "samples_per_prompt": case.counts[1],
            "max_tokens": case.tokens[1],
            "stop": [],
        },
        "algorithm": {"name": "ppo", "kl_coef": 0.0} if case.critic else {"name": "grpo"},
        "engine": {"name": "embedded"},
        "train": {
            "minibatch_size": sequences,
            "micro_batch_tokens": case.micro_batch_tokens,
            "ppo_epochs": case.ppo_epochs,
            "steps": 10,
        },
    }
    if case.cpu_threads is not None:
        table["train"]["cpu_threads"] = case.cpu_threads
    return validate_recipe(apply_overrides(table, case.set), kind=Recipe)


def measure(case: Case, model: str) -> dict[str, Any]:
    """Measured and estimated peaks in bytes, by phase."""
    from simplerl.estimate.memory import workers
    from simplerl.estimate.shapes import known_shape

    recipe, shape = recipe_of(case, model), known_shape(model)
    assert shape is not None
    (worker,) = workers(recipe, shape, device="cpu", threads=int(os.environ["OMP_NUM_THREADS"]))

    def belongs(name: str) -> bool:
        of_engine = name in ("engine copy", "KV cache")
        return of_engine or name == "workspace" if case.engine else not of_engine

    estimated = {
        phase: sum(count for name, count in worker.phases[phase].items() if belongs(name)) for phase in case.phases
    }
    peaks = measured_engine(case, recipe, model) if case.engine else measured_learner(case, recipe)
    return {"measured": peaks, "estimated": estimated}


def measured_learner(case: Case, recipe: Any) -> dict[str, int]:
    import gc

    import torch

    from simplerl.batch.batch import collate
    from simplerl.estimate.steps import needs_scoring_pass
    from simplerl.learner.learner import LocalLearner
    from simplerl.train.build.services import build_algorithm
    from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict

    warm_up(recipe)
    generator = torch.Generator().manual_seed(0)

    def random_tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, case.vocab, (count,), generator=generator).tolist())

    def graded(prompt: Prompt, number: int) -> GradedRollout:
        rollout = Rollout.single_turn(
            "r", prompt, random_tokens(case.tokens[1]), (-9.0,) * case.tokens[1], "", "stop", 0
        )
        return GradedRollout(rollout, Verdict("correct"), float(number % 2))

    prompts = [Prompt(Problem(f"p{n}", "q", "1"), "q", random_tokens(case.tokens[0])) for n in range(case.counts[0])]
    batch = collate([[graded(prompt, number) for number in range(case.counts[1])] for prompt in prompts])
    algorithm = build_algorithm(recipe)
    gc.collect()
    base, peaks = resident(), dict[str, int]()
    learner = LocalLearner(recipe, algorithm, 10, torch.device("cpu"))
    for model in filter(None, (learner.actor, learner.critic, learner.reference)):
        make_resident(model)
    own_logprobs = needs_scoring_pass(recipe, 1, needs_old_logprobs=algorithm.needs_old_logprobs)
    for repetition in range(2):
        with record_peak(peaks, "score", base):
            scored = learner.score(batch, old_logprobs=own_logprobs)
        credited, _ = algorithm.compute_advantages(scored)
        with record_peak(peaks, "update", base):
            learner.update(credited, algorithm)
        del scored, credited
        gc.collect()
        if repetition == 0:
            peaks.clear()
    learner.close()
    return peaks


def measured_engine(case: Case, recipe: Any, model: str) -> dict[str, int]:
    import gc

    import torch

    from simplerl.engines.base import generate
    from simplerl.rollouts.grade import make_requests
    from simplerl.train.build.services import build_engine, load_tokenizer
    from simplerl.types import Problem, Prompt, Sampling

    warm_up(recipe)
    tokenizer = load_tokenizer(recipe)
    ids = [tuple((7 * n + i) % 90 + 1 for i in range(case.tokens[0])) for n in range(case.counts[0])]
    prompts = [Prompt(Problem(f"p{n}", "q", "1"), "q", each) for n, each in enumerate(ids)]
    sampling = Sampling(max_tokens=case.tokens[1], n=case.counts[1])
    gc.collect()
    base, peaks = resident(), dict[str, int]()
    engine: Any = build_engine(recipe, tokenizer, torch.device("cpu"))
    make_resident(engine._model.model)
    with record_peak(peaks, "rollout", base):
        generate(engine, make_requests(prompts, sampling, 0, "memory", 0))
    return peaks


def make_resident(model: Any) -> None:
    """Write to all weights: until then they are pages of a file, which `resident` leaves out."""
    for parameter in model.parameters():
        parameter.data.mul_(1)


def warm_up(recipe: Any) -> None:
    """Load and compile everything that a first pass needs, with the embedded base model."""
    import torch

    from simplerl.cpu import kernels_available
    from simplerl.learner.models import load_causal_lm

    kernels_available()
    model = load_causal_lm(recipe.model.model_copy(update={"path": "tiny-math-base", "lora": None}))
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.model.dtype == "bfloat16"):
        model(torch.arange(8)[None]).logits.sum().backward()
    if recipe.model.lora is not None:
        import peft  # noqa: F401


# --- the benchmark ----------------------------------------------------------------------------------------------------


def run_case(case: Case) -> dict[str, Any]:
    """The results of a case, from a forked process that has everything imported."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_results, args=(case, sender))
    process.start()
    sender.close()
    try:
        results = receiver.recv()
    except EOFError:
        results = {"failed": "the process ended without results"}
    process.join()
    return results


def send_results(case: Case, sender: Any) -> None:
    try:
        sender.send(measure(case, str(make_model(Shape(*SIZES[case.size], case.vocab)))))
    except Exception as error:
        sender.send({"failed": f"{type(error).__name__}: {error}"})


def restart_with_allocator(threads: int) -> None:
    """Restart this program with the allocator's settings, read at start-up, and import what all cases need."""
    wanted = ALLOCATOR | {"OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    import simplerl.learner.learner
    import simplerl.train.build.rl  # noqa: F401


def row_of(case: Case, phase: str, results: dict[str, Any]) -> list[str]:
    measured, estimated = results["measured"][phase], results["estimated"][phase]
    tokens = f"{math.prod(case.counts)} x {case.tokens[0]} + {case.tokens[1]}, {case.micro_batch_tokens}"
    error = 100 * (estimated / measured - 1)
    return [case.name, case.size, tokens, phase, f"{measured / MIB:,.0f}", f"{estimated / MIB:,.0f}", f"{error:+.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="names, separated by ';' (default: all)")
    parser.add_argument("--held-out", action="store_true", help="the held-out cases instead")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    restart_with_allocator(options.threads)
    rows = []
    wanted = options.cases.split(";") if options.cases else None
    for case in HELD_OUT if options.held_out else CASES:
        if wanted is not None and case.name not in wanted:
            continue
        results = run_case(case)
        emit(case=case.name, **results)
        if "measured" in results:
            rows += [row_of(case, phase, results) for phase in case.phases]
    head = ("case", "model", "responses x prompt + response tokens, micro-batch", "phase", "measured, MiB")
    print_table((*head, "estimated, MiB", "error, %"), rows)


if __name__ == "__main__":
    main()
