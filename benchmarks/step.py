"""One whole step of reinforcement learning (rollout, score, update), this project and TRL in turns.

    python benchmarks/step.py --trl PYTHON [--dtype bfloat16] [--compile]
    python benchmarks/step.py --algorithm ppo --trl-ppo PYTHON
    python benchmarks/step.py --lengths real --trl PYTHON [--model FOLDER]

Prints JSON lines, then a Markdown table. With `--lengths fixed` a small random Qwen2 answers with exactly
`--new-tokens` tokens. With `--lengths real` the embedded base, or the model in a folder, answers problems of the
`arithmetic` source and stops when it wants to. Both get the same prompts in the same order, the same reward (for real
lengths ours is the full verifier, the peer's a comparison of strings) and one optimizer step per rollout batch, at a
rate that moves nothing, so that lengths stay as they are. TRL's PPO always runs a reference model; ours does not.

The operations counted are the fewest that a step needs, the same for both: sampling's forward pass and the update, with
a prompt computed once for all its responses. Their share of the GEMM peak is how near a step is to the machine's roof.

Each program runs in a process of its own; they take turns. PYTHON is an interpreter that has the peer: trl 1.16.0 for
GRPO, trl 1.12.0, the last with PPO, for PPO.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _common import make_job, make_model, parser, peer_jobs, random_prompts, shape_of, source_prompts
from _contest import HERE, OURS, Contender, emit, hold, left_out, print_notes, print_table
from _counting import Shape, forward_flop, training_flop
from _machine import description, gemm_peak, roofline

REAL_PROMPTS, REAL_TOKENS = 32, 200
PHASES = ("rollout", "score", "update")


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--algorithm", default="grpo", choices=("grpo", "ppo"))
    made.add_argument("--lengths", default="fixed", choices=("fixed", "real"))
    made.add_argument("--model", type=Path, help="real lengths: a model folder instead of the embedded base")
    made.add_argument("--prompts", type=int, help="prompts of a step: 8, and 32 for real lengths")
    made.add_argument("--compile", action="store_true", help="torch_compile in TRL")
    made.add_argument("--trl", metavar="PYTHON", help="an interpreter with trl 1.16.0")
    made.add_argument("--trl-ppo", metavar="PYTHON", help="an interpreter with trl 1.12.0")
    return made.parse_args()


def prepared_job(options: argparse.Namespace) -> dict[str, Any]:
    """What both are told; real lengths have new prompts for every step."""
    common = {"what": "step", "algorithm": options.algorithm, "compile": options.compile}
    if options.lengths == "fixed":
        count = options.prompts or 8
        prompts = random_prompts(count, options.prompt)
        return make_job(options, make_model(shape_of(options)), prompts=prompts, prompts_per_step=count, **common)
    from simplerl.learner.models import resolve_model_path

    count = options.prompts or REAL_PROMPTS
    model = Path(options.model or resolve_model_path("tiny-math-base")).resolve()
    prompts = source_prompts(model, count * (options.warm_up + options.repeats))
    more = {"fixed": False, "max_tokens": REAL_TOKENS, "prompts": prompts, "prompts_per_step": count}
    return make_job(options, model, **more, **common)


def contenders(options: argparse.Namespace, job: dict[str, Any]) -> list[Contender]:
    made = [Contender("SimpleRL", OURS, job)]
    ppo = options.algorithm == "ppo"
    python, option = (options.trl_ppo, "--trl-ppo") if ppo else (options.trl, "--trl")
    name = f"TRL {options.algorithm.upper()}" + (" compiled" if options.compile else "")
    name += " (with a reference)" if ppo else ""
    if not python:
        left_out(name, f"no {option} PYTHON was given")
    elif ppo and options.lengths == "real":
        left_out(name, "its PPO generates for all until the last response has ended; compare fixed lengths")
    else:
        program = HERE / "peers" / f"trl_{options.algorithm}.py"
        made += [Contender(name + more, program, its, python) for more, its in peer_jobs(options, job).items()]
    return made


def counted_flop(shape: Shape, job: dict[str, Any], responses: float, tokens: float) -> float:
    """Of a step: the forward passes that sampling needs, and the update. Lengths count as if all were the mean."""
    prompt = round(sum(len(p["ids"]) for p in job["prompts"]) / len(job["prompts"]))
    response, shared, critic = round(tokens / responses), job["samples"], job["algorithm"] == "ppo"
    sampling = forward_flop(shape, prompt, response, shared=shared)
    return responses * (sampling + training_flop(shape, prompt, response, shared=shared, critic=critic))


def table_row(each: Contender, ours: Contender, job: dict[str, Any], peak: float) -> list[str]:
    seconds, responses, tokens = (each.median(key) for key in ("seconds", "responses", "tokens"))
    parts = [each.median(f"phases/{name}") for name in PHASES]
    flop = counted_flop(Shape.read(Path(job["model"])), job, responses, tokens)
    rate, our_rate = tokens / seconds, ours.median("tokens") / ours.median("seconds")
    return [
        each.name,
        f"{seconds:.3f}",
        *(f"{part:.3f}" for part in parts),
        f"{max(0.0, seconds - sum(parts)):.3f}",
        f"{responses / seconds:,.1f}",
        f"{tokens / responses:.1f}",
        f"{rate:,.0f}",
        f"{our_rate / rate:.2f}",
        f"{flop / seconds / 1e9:.1f} ({100 * flop / seconds / 1e9 / peak:.0f} %)",
        f"{max(row['peak_mib'] for row in each.rows) / 1024:.2f}",
    ]


def main() -> None:
    options = arguments()
    roof = roofline(options.threads)
    emit(**description())
    emit(roofline=roof)
    job = prepared_job(options)
    emit(case={key: value for key, value in job.items() if key not in ("prompts", "model")})
    entered = contenders(options, job)
    measured = hold(entered, repeats=options.repeats, warm_up=options.warm_up)
    if entered[0].rows:
        peak = gemm_peak(roof, options.dtype)
        head = ("", "s/step", *(f"{name}, s" for name in PHASES), "other, s", "responses/s", "tokens/response")
        head += ("tokens/s", "ours is faster by", "needed GFLOP/s (of GEMM peak)", "peak GiB")
        print_table(head, [table_row(each, entered[0], job, peak) for each in measured])
    print_notes(entered)


if __name__ == "__main__":
    main()
