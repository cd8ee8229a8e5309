"""Peak memory of the learner and of the embedded engine, measured, beside what `simplerl plan` says of the same recipe.

    python benchmarks/memory.py [--held-out] [--cases "NAME;..."] [--threads 2]

Every case is a process of its own: a random Qwen2, real `Learner`, given responses of full length, one update to make
the moments, then the memory above what the process held before there was a model, in scoring and in a second update.
The allocator gives freed memory back (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), so that what is resident is what
is held. Prints JSON lines, then a Markdown table.
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

GIB = 1 << 30
MIB = 1 << 20
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
SIZES = {
    "24m": (512, 2048, 6, 8, 4),
    "84m": (768, 3072, 10, 12, 4),
    "150m": (1024, 4096, 10, 16, 4),
    "wide": (256, 1024, 4, 4, 2),
}
"""Hidden and intermediate size, layers, heads, key-value heads."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    name: str
    size: str
    vocab: int
    tokens: tuple[int, int]
    """Of a prompt, and of a response."""

    counts: tuple[int, int]
    """Prompts, and responses to each."""

    micro: int
    """Tokens of a micro-batch at most."""

    set: tuple[str, ...] = ()
    cpu_threads: int | None = 1
    ppo_epochs: int = 2
    """With one, the policy is not scored before its update."""

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
    Case("kernels, 2 lanes", "24m", 8192, (64, 448), (1, 8), 2048, cpu_threads=None),
    Case("kernels, 2 lanes, critic", "24m", 8192, (64, 448), (1, 8), 2048, cpu_threads=None, critic=True),
    Case(
        "kernels, critic's pass kept", "84m", 8192, (64, 448), (1, 8), 8192, cpu_threads=None, ppo_epochs=1, critic=True
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
# Not looked at while the formulas were written and mended.
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
    """Bytes of this process that are in memory, without what is mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this needs Linux 4.5 or later")


@contextmanager
def watched(peaks: dict[str, int], name: str, base: int) -> Iterator[None]:
    """The most that was resident meanwhile above `base`, looked at every two milliseconds."""
    stop, most = threading.Event(), [resident()]

    def look() -> None:
        while not stop.is_set():
            most[0] = max(most[0], resident())
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    peaks[name] = most[0] - base


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
            "micro_batch_tokens": case.micro,
            "ppo_epochs": case.ppo_epochs,
            "steps": 10,
        },
    }
    if case.cpu_threads is not None:
        table["train"]["cpu_threads"] = case.cpu_threads
    return validate_recipe(apply_overrides(table, case.set), kind=Recipe)


def measure(case: Case, model: str) -> dict[str, Any]:
    """Peaks in bytes by phase, and the plan's."""
    from simplerl.estimate.memory import workers
    from simplerl.estimate.shapes import known_shape

    recipe, shape = recipe_of(case, model), known_shape(model)
    assert shape is not None
    (planned,) = workers(recipe, shape, device="cpu", threads=int(os.environ["OMP_NUM_THREADS"]))
    mine = ("engine copy", "KV cache", "workspace") if case.engine else None
    told = {
        phase: sum(
            count
            for name, count in planned.phases[phase].items()
            if (name in mine if mine else name not in ("engine copy", "KV cache"))
        )
        for phase in case.phases
    }
    peaks = measured_engine(case, recipe, model) if case.engine else measured_learner(case, recipe)
    return {"measured": peaks, "planned": told}


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

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, case.vocab, (count,), generator=generator).tolist())

    def graded(prompt: Prompt, number: int) -> GradedRollout:
        rollout = Rollout.single_turn("r", prompt, drawn(case.tokens[1]), (-9.0,) * case.tokens[1], "", "stop", 0)
        return GradedRollout(rollout, Verdict("correct"), float(number % 2))

    prompts = [Prompt(Problem(f"p{n}", "q", "1"), "q", drawn(case.tokens[0])) for n in range(case.counts[0])]
    batch = collate([[graded(prompt, number) for number in range(case.counts[1])] for prompt in prompts])
    algorithm = build_algorithm(recipe)
    gc.collect()
    base, peaks = resident(), dict[str, int]()
    learner = LocalLearner(recipe, algorithm, 10, torch.device("cpu"))
    for model in filter(None, (learner.actor, learner.critic, learner.reference)):
        own(model)
    own_logprobs = needs_scoring_pass(recipe, 1, needs_old_logprobs=algorithm.needs_old_logprobs)
    for turn in range(2):
        with watched(peaks, "score", base):
            scored = learner.score(batch, old_logprobs=own_logprobs)
        credited, _ = algorithm.compute_advantages(scored)
        with watched(peaks, "update", base):
            learner.update(credited, algorithm)
        del scored, credited
        gc.collect()
        if turn == 0:
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
    own(engine._model.model)
    with watched(peaks, "rollout", base):
        generate(engine, make_requests(prompts, sampling, 0, "memory", 0))
    return peaks


def own(model: Any) -> None:
    """Makes memory of weights that are a file's pages as long as nobody writes to them."""
    for parameter in model.parameters():
        parameter.data.mul_(1)


def warm_up(recipe: Any) -> None:
    """Loads and compiles what a first pass loads and compiles, on the embedded base."""
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
    """The case in a process of its own, which begins with everything imported."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(case, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = {"failed": "the process ended without an answer"}
    process.join()
    return found


def answer(case: Case, where: Any) -> None:
    try:
        where.send(measure(case, str(make_model(Shape(*SIZES[case.size], case.vocab)))))
    except Exception as error:
        where.send({"failed": f"{type(error).__name__}: {error}"})


def begin(threads: int) -> None:
    """Starts this program again with the allocator's settings, which are read once, and imports what all cases need."""
    wanted = GIVING_BACK | {"OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    import simplerl.learner.learner
    import simplerl.train.build.rl  # noqa: F401


def row_of(case: Case, phase: str, found: dict[str, Any]) -> list[str]:
    measured, planned = found["measured"][phase], found["planned"][phase]
    tokens = f"{math.prod(case.counts)} x {case.tokens[0]} + {case.tokens[1]}, {case.micro}"
    error = 100 * (planned / measured - 1)
    return [case.name, case.size, tokens, phase, f"{measured / MIB:,.0f}", f"{planned / MIB:,.0f}", f"{error:+.1f}"]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cases", help="names, separated by ';' (default: all)")
    made.add_argument("--held-out", action="store_true", help="the held-out cases instead")
    made.add_argument("--threads", type=int, default=2)
    options = made.parse_args()
    begin(options.threads)
    rows = []
    wanted = options.cases.split(";") if options.cases else None
    for case in HELD_OUT if options.held_out else CASES:
        if wanted is not None and case.name not in wanted:
            continue
        found = run_case(case)
        emit(case=case.name, **found)
        if "measured" in found:
            rows += [row_of(case, phase, found) for phase in case.phases]
    head = ("case", "model", "responses x prompt + response tokens, micro-batch", "phase", "measured, MiB")
    print_table((*head, "planned, MiB", "error, %"), rows)


if __name__ == "__main__":
    main()
