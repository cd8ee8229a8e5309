"""What a learner's step costs as batch, length, model and vocabulary grow: seconds against counted operations.

    python benchmarks/scaling.py [--axes batch,length,model,vocabulary]

Prints JSON lines, then a Markdown table per axis. The rollout is replaced by random responses, so a step is scoring and
update (`--algorithm grpo`: the actor's update). The deviation is that of a row's seconds per counted operation from
the geometric mean of its axis: 0 everywhere is a cost that grows exactly as the work. The rows of an axis take turns.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import geometric_mean

from _common import SHAPES, make_job, make_model, parser, random_prompts, shape_of
from _contest import OURS, Contender, emit, hold, print_notes, print_table
from _counting import Shape, training_flop
from _machine import description, gemm_peak, roofline

MICRO_BATCH = 8192
"""Our default `train.micro_batch_tokens`: how many responses can share a computed prompt depends on it."""


@dataclass(frozen=True)
class Case:
    """A row: what grows, and all that it takes."""

    label: str
    shape: Shape
    responses: int
    length: int


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--axes", default="batch,length,model,vocabulary")
    made.add_argument("--algorithm", default="grpo", choices=("grpo", "ppo"))
    made.add_argument("--batches", default="64,128,256,512,1024", help="responses of --new-tokens tokens")
    made.add_argument("--lengths", default="128,256,512,1024,2048,4096", help="response tokens, --tokens in all")
    made.add_argument("--tokens", type=int, default=32_768, help="response tokens of each row of the length axis")
    made.add_argument("--models", default=",".join(SHAPES), help="sizes, with 64 responses")
    made.add_argument("--vocabularies", default="96,1024,8192,32768,151936", help="with 64 responses")
    return made.parse_args()


def cases(options: argparse.Namespace, axis: str) -> list[Case]:
    shape, new = shape_of(options), options.new_tokens
    if axis == "batch":
        return [Case(f"{batch} responses", shape, batch, new) for batch in numbers(options.batches)]
    if axis == "length":
        lengths = numbers(options.lengths)
        return [Case(f"{length:,} tokens", shape, options.tokens // length, length) for length in lengths]
    if axis == "model":
        return [Case(name, shape_of(options, name=name), 64, new) for name in options.models.split(",")]
    sizes = numbers(options.vocabularies)
    return [Case(f"vocabulary {size:,}", shape_of(options, vocab=size), 64, new) for size in sizes]


def numbers(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def step_flop(options: argparse.Namespace, case: Case) -> float:
    """Counted operations of a step; a prompt counts once for the responses that are computed together with it."""
    together = max(1, (MICRO_BATCH - options.prompt) // case.length)
    shared = min(options.samples, together)
    critic = options.algorithm == "ppo"
    return case.responses * training_flop(case.shape, options.prompt, case.length, shared=shared, critic=critic)


@cache
def model_of(shape: Shape) -> Path:
    return make_model(shape)


def contender(options: argparse.Namespace, case: Case) -> Contender:
    count = case.responses // options.samples
    if count * options.samples != case.responses:
        raise SystemExit(f"{case.label}: --samples {options.samples} does not divide {case.responses} responses")
    more = {"what": "step", "canned": True, "algorithm": options.algorithm, "max_tokens": case.length}
    prompts = random_prompts(count, options.prompt)
    job = make_job(options, model_of(case.shape), prompts=prompts, prompts_per_step=count, **more)
    job["set"] = [f"train.micro_batch_tokens={MICRO_BATCH}", *job["set"]]
    return Contender(case.label, OURS, job)


def seconds_of(each: Contender) -> float:
    return each.median("phases/score") + each.median("phases/update")


def measure(options: argparse.Namespace, axis: str, peak: float) -> None:
    entered = {case.label: case for case in cases(options, axis)}
    every = [contender(options, case) for case in entered.values()]
    measured = hold(every, repeats=options.repeats, warm_up=options.warm_up)
    flops = {each.name: step_flop(options, entered[each.name]) for each in measured}
    costs = {each.name: seconds_of(each) / flops[each.name] for each in measured}
    middle = geometric_mean(costs.values()) if costs else 1.0
    rows = []
    for each in measured:
        seconds, flop, case = seconds_of(each), flops[each.name], entered[each.name]
        deviation, rate = costs[each.name] / middle - 1, flop / seconds / 1e9
        emit(axis=axis, row=each.name, seconds=seconds, flop=flop, gflops=rate, deviation=deviation)
        rows.append(
            [
                each.name,
                f"{case.responses} x {case.length:,}",
                f"{seconds:.3f}",
                f"{1e3 * seconds / case.responses:.2f}",
                f"{flop / 1e9:,.1f}",
                f"{rate:.1f}",
                f"{100 * rate / peak:.0f} %",
                f"{100 * deviation:+.1f} %",
            ]
        )
    head = ("", "responses x tokens", "s", "ms/response", "GFLOP", "GFLOP/s", "of GEMM peak")
    print_table((axis, *head[1:], "s/FLOP against the geometric mean"), rows)
    print_notes(every)


def main() -> None:
    options = arguments()
    emit(**description())
    roof = roofline(options.threads)
    emit(roofline=roof)
    for axis in options.axes.split(","):
        measure(options, axis, gemm_peak(roof, options.dtype))


if __name__ == "__main__":
    main()
