"""The learner alone: scoring and update of a batch of given responses, against TRL's; and the memory both take.

    python benchmarks/learner.py [--shape 24m] --trl PYTHON --trl-ppo PYTHON
    python benchmarks/learner.py --memory

Prints JSON lines, then a Markdown table. The rollout of each trainer is replaced by random responses that cost nothing,
so its step is what follows: for GRPO the actor's update, which needs no scoring beforehand in either program; for PPO
values and the update of actor and critic (TRL's PPO also runs a reference model). The operations counted are the
fewest that the updates need, the same for both, with a prompt computed once for all its responses.

`--memory` is a vocabulary of 151,936 and growing batches and lengths. Naive is the log-softmax of all logits at once;
where that would not fit in `--memory-gib`, its row holds computed bytes and says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _common import make_job, make_model, parser, peer_jobs, random_prompts, shape_of
from _contest import HERE, OURS, Contender, emit, hold, left_out, print_notes, print_table
from _counting import Shape, training_flop
from _machine import description, gemm_peak, roofline

VOCABULARY = 151_936
COPIES = 3
"""Logits, their log-softmax and its gradient, which the naive way holds at once."""


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--algorithms", default="grpo,ppo")
    made.add_argument("--prompts", type=int, default=8, help="prompts of a batch")
    made.add_argument("--compile", action="store_true", help="torch_compile in TRL")
    made.add_argument("--trl", metavar="PYTHON", help="an interpreter with trl 1.16.0, for GRPO")
    made.add_argument("--trl-ppo", metavar="PYTHON", help="an interpreter with trl 1.12.0, for PPO")
    made.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    made.add_argument("--batches", default="2,4,8", help="memory: responses of --length tokens")
    made.add_argument("--lengths", default="1024,2048,4096", help="memory: tokens of two responses")
    made.add_argument("--length", type=int, default=4096, help="memory: tokens of the responses of growing batches")
    made.add_argument("--memory-gib", type=float, default=20.0, help="memory: what the naive way may take")
    return made.parse_args()


# --- speed ------------------------------------------------------------------------------------------------------------


def contenders(options: argparse.Namespace, model: Path, algorithm: str) -> list[Contender]:
    """Ours first, then TRL's where there is an interpreter for it."""
    more = {"what": "step", "algorithm": algorithm, "canned": True, "compile": options.compile}
    prompts = random_prompts(options.prompts, options.prompt)
    job = make_job(options, model, prompts=prompts, prompts_per_step=options.prompts, **more)
    emit(case={key: value for key, value in job.items() if key not in ("prompts", "model")})
    kind = algorithm.upper()
    made = [Contender(f"SimpleRL {kind}", OURS, job)]
    python = options.trl_ppo if algorithm == "ppo" else options.trl
    name = f"TRL {kind}" + (" compiled" if options.compile else "")
    name += " (with a reference)" if algorithm == "ppo" else ""
    if python:
        program = HERE / "peers" / f"trl_{algorithm}.py"
        made += [Contender(name + more, program, its, python) for more, its in peer_jobs(options, job).items()]
    else:
        left_out(name, f"no {'--trl-ppo' if algorithm == 'ppo' else '--trl'} PYTHON was given")
    return made


def speed_row(each: Contender, ours: Contender, options: argparse.Namespace, peak: float) -> list[str]:
    score, update = (each.median(f"phases/{name}") for name in ("score", "update"))
    seconds = score + update
    our_seconds = ours.median("phases/score") + ours.median("phases/update")
    critic = each.job["algorithm"] == "ppo"
    size = (options.prompt, options.new_tokens)
    one = training_flop(shape_of(options), *size, shared=options.samples, critic=critic)
    rate = one * each.median("responses") / seconds / 1e9
    return [
        each.name,
        f"{score:.3f}",
        f"{update:.3f}",
        f"{each.median('tokens') / seconds:,.0f}",
        f"{seconds / our_seconds:.2f}",
        f"{rate:.1f}",
        f"{100 * rate / peak:.0f} %",
        f"{max(row['peak_mib'] for row in each.rows) / 1024:.2f}",
    ]


def measure_speed(options: argparse.Namespace) -> None:
    roof = roofline(options.threads)
    emit(roofline=roof)
    model = make_model(shape_of(options))
    rows, entered = [], []
    for algorithm in options.algorithms.split(","):
        mine = contenders(options, model, algorithm)
        measured = hold(mine, repeats=options.repeats, warm_up=options.warm_up)
        entered += mine
        if mine[0].rows:
            peak = gemm_peak(roof, options.dtype)
            rows += [speed_row(each, mine[0], options, peak) for each in measured]
    head = ("", "score, s", "update, s", "response tokens/s", "ours is faster by", "needed GFLOP/s", "of GEMM peak")
    print_table((*head, "peak GiB"), rows)
    print_notes(entered)


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_cases(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Responses and their tokens."""
    batches = [(int(batch), options.length) for batch in options.batches.split(",")]
    lengths = [(2, int(length)) for length in options.lengths.split(",")]
    return list(dict.fromkeys(batches + lengths))


def memory_job(options: argparse.Namespace, model: Path, batch: int, length: int, what: str) -> dict[str, Any]:
    """Two epochs, so that the responses are scored before the first; the naive way does so without asking."""
    more = {"canned": True, "memory": True, "samples": batch, "max_tokens": length, "prompts_per_step": 1, "epochs": 2}
    return make_job(options, model, what=what, prompts=random_prompts(1, options.prompt), **more)


def memory_row(options: argparse.Namespace, model: Path, batch: int, length: int) -> list[str]:
    """Peak memory of scoring and of updating, above what the process held before it."""
    cells = [f"{batch} x {length:,}"]
    for name, what in (("SimpleRL", "step"), ("naive", "naive")):
        logits = batch * length * VOCABULARY * 4 / (1 << 30)
        if what == "naive" and COPIES * logits > options.memory_gib:
            emit(name=name, batch=batch, length=length, computed_gib={"score": 2 * logits, "update": COPIES * logits})
            cells += [f"{2 * logits:.1f} (computed)", f"{COPIES * logits:.1f} (computed)"]
            continue
        emit(case={"name": name, "batch": batch, "length": length})
        each = Contender(name, OURS, memory_job(options, model, batch, length, what))
        hold([each], repeats=1, warm_up=0)
        if each.rows:
            row = each.rows[0]
            cells += [f"{(row['peaks'][phase] - row['held_mib']) / 1024:.2f}" for phase in ("score", "update")]
        else:
            cells += ["failed", each.failure or ""]
    return cells


def measure_memory(options: argparse.Namespace) -> None:
    model = make_model(Shape(*_sizes(options), VOCABULARY))
    rows = [memory_row(options, model, batch, length) for batch, length in memory_cases(options)]
    head = ("responses x tokens", "SimpleRL: score, GiB", "update, GiB", "naive: score, GiB", "update, GiB")
    print_table(head, rows)
    print(
        f"\nVocabulary {VOCABULARY:,}. Above what each process held before the step, its weights among it; "
        "gradients and the optimizer's state are in `update`. Computed are logits and log-softmax, for updates the "
        "gradient too."
    )


def _sizes(options: argparse.Namespace) -> tuple[int, int, int, int, int]:
    shape = shape_of(options)
    return shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads


def main() -> None:
    options = arguments()
    emit(**description())
    if options.memory:
        measure_memory(options)
    else:
        measure_speed(options)


if __name__ == "__main__":
    main()
