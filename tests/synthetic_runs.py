"""Writes run folders with made-up but plausible numbers: the published dynamics, the same for the same seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from simplerl.stats.intervals import wilson

RECIPE = """description = "PPO from the embedded base model"
seed = {seed}
reward = "simplerl"

[model]
path = "{model}"

[train]
steps = {steps}

[eval]
every = 5

[[eval.sets]]
name = "arithmetic-test"
"""
SFT_RECIPE = """description = "Fine-tuning on the responses of a teacher"
kind = "sft"
seed = {seed}
reward = "simplerl"

[model]
path = "tiny-math-base"

[train]
data_epochs = 3

[eval]
every = 5

[[eval.sets]]
name = "arithmetic-test"
"""
PROBLEMS = 500
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> &amp; \u202edesrever\u202c \x00\x1b[31m {{ 7*7 }}"


def _curve(start: float, end: float, middle: float, step: float, width: float = 6.0) -> float:
    return start + (end - start) / (1 + math.exp(-(step - middle) / width))


def shares(step: int) -> dict[str, float]:
    """What a policy does at a step: probabilities of solving a problem and of each style."""
    return {
        "greedy": _curve(0.05, 0.76, 25, step),
        "sampled": _curve(0.03, 0.66, 28, step),
        "code": _curve(0.55, 0.0, 9, step, 2.6),
        "reflection": _curve(0.03, 0.97, 26, step, 4.0),
        "unboxed": _curve(0.33, 0.0, 10, step, 2.6),
        "length": 50 + 30 * math.exp(-step / 7) + _curve(-2, 62, 30, step, 5.0),
    }


def _noisy(rng: random.Random, share: float) -> float:
    return sum(rng.random() < share for _ in range(PROBLEMS)) / PROBLEMS


def metrics_row(step: int, rng: random.Random) -> dict[str, float]:
    now = shares(step)
    correct, none = _noisy(rng, now["sampled"]), _noisy(rng, now["unboxed"])
    none = min(none, 1 - correct)
    row = {"step": step, "reward/mean": correct - 0.5 * (1 - correct - none) - none, "reward/accuracy": correct}
    row |= {"verdict/correct": correct, "verdict/wrong": 1 - correct - none, "verdict/no_answer": none}
    length = now["length"] + rng.gauss(0, 1.5)
    row |= {"verdict/error": 0.0, "length/mean": length, "length/correct": length * 0.96, "length/wrong": length * 1.1}
    row |= {"length/truncated": 160.0, "length/clip_ratio": 0.02 * math.exp(-step / 20)}
    row |= {f"style/{name}": _noisy(rng, now[name]) for name in ("code", "reflection", "unboxed")}
    row |= {"kl/reference": 0.004 * step * rng.uniform(0.9, 1.1), "entropy": 0.6 * math.exp(-step / 30) + 0.05}
    row |= {"value/explained_variance": _curve(-0.2, 0.6, 12, step), "ratio/clip_fraction": rng.uniform(0.001, 0.02)}
    row |= {"actor/grad_norm": rng.uniform(0.3, 0.9), "critic/grad_norm": rng.uniform(1, 8) * math.exp(-step / 25)}
    row |= {"actor/lr": 6e-5, "critic/lr": 3e-4, "loss/policy": rng.gauss(0, 0.01), "loss/value": 0.2}
    row |= {"mismatch/mean": 2e-7 * rng.uniform(0.8, 1.2), "mismatch/max": 3e-6 * rng.uniform(0.8, 1.2)}
    row |= {"time/rollout": 3.6 + length / 60, "time/grade": 0.12, "time/score": 0.9, "time/update": 3.1}
    row["time/total"] = sum(value for key, value in row.items() if key.startswith("time/"))
    return row | {"time/tokens_per_second": 8200.0, "memory/rss_gib": 1.1 + 0.001 * step}


def eval_row(step: int, temperature: float, rng: random.Random, name: str = "arithmetic-test") -> dict[str, object]:
    now = shares(step)
    ease = 0.55 if name == "arithmetic-hard" else 1.0
    accuracy = _noisy(rng, ease * (now["greedy"] if temperature == 0 else now["sampled"]))
    low, high = wilson(round(accuracy * PROBLEMS), PROBLEMS)
    row = {"step": step, "set": name, "temperature": temperature, "n": PROBLEMS, "accuracy": accuracy}
    row |= {"accuracy_low": low, "accuracy_high": high, "reward": 2 * accuracy - 1}
    row |= {"length": now["length"] + rng.gauss(0, 0.6), "clip_ratio": 0.01}
    return row | {style: _noisy(rng, now[style]) for style in ("code", "reflection", "unboxed")}


def _response(index: int, step: int, rng: random.Random) -> str:
    a, b = 300 + index, 40 + 3 * index
    if rng.random() < shares(step)["code"]:
        return (
            f"We can write a Python program.\n```python\ndef solve():\n    return {a} + {b}\n\nprint(solve())\n```\n{a}"
        )
    checked = rng.random() < shares(step)["reflection"]
    guess = a + b if checked or rng.random() < 0.2 else a + b + 10
    middle = f" Wait, let me check.\n{a}+{b}: {a % 10}+{b % 10}={a % 10 + b % 10}, {a + b}\n" if checked else " "
    return f"{a}+{b}={guess}.{middle}The answer is \\boxed{{{guess}}}."


def _responses(step: int, temperature: float, rng: random.Random, hostile: bool) -> list[dict[str, object]]:
    rows = []
    for index in range(40):
        answer, text = str(300 + index + 40 + 3 * index), _response(index, step, rng)
        boxed = text.partition("\\boxed{")[2].partition("}")[0]
        verdict = "no_answer" if not boxed else "correct" if boxed == answer else "wrong"
        row = {"step": step, "set": "arithmetic-test", "temperature": temperature, "problem_id": f"arithmetic/{index}"}
        row |= {"sample_index": 0, "prompt": "Question: ...", "question": f"What is {300 + index}+{40 + 3 * index}?"}
        row |= {"answer": answer, "text": text + HOSTILE * hostile, "prompt_tokens": 20, "response_tokens": len(text)}
        row |= {"finish_reason": "stop", "extracted": boxed or None, "verdict": verdict, "method": "box, value"}
        rows.append(row | {"reward": {"correct": 1.0, "wrong": -0.5, "no_answer": -1.0}[verdict], "level": 3})
    return rows


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sft_metrics_row(step: int, steps: int, rng: random.Random) -> dict[str, float]:
    loss = _curve(2.4, 0.55, 0.15 * steps, step, 0.12 * steps)
    row = {"step": step, "epoch": 3 * step / steps, "loss/sft": loss * rng.uniform(0.94, 1.06)}
    row |= {"entropy": loss * 0.9, "tokens/prompt": 64 * 20, "tokens/response": 64 * 105, "length/mean": 105.0}
    row |= {
        "pack/count": 8,
        "pack/token_utilization": rng.uniform(0.93, 0.99),
        "actor/grad_norm": rng.uniform(0.4, 1.2),
    }
    row |= {"actor/lr": 1e-3 * (1 - step / (steps + 1)), "time/update": 2.1, "time/total": 2.2}
    return row | {"time/tokens_per_second": 3100.0, "memory/rss_gib": 1.2}


def validation_row(step: int, steps: int) -> dict[str, float]:
    """Falls with the training loss, and rises a little again at the end."""
    loss = _curve(2.4, 0.62, 0.15 * steps, step, 0.12 * steps) + 0.1 * max(0.0, step / steps - 0.7)
    return {"step": step, "loss": loss, "tokens": 6720, "sequences": 64}


def write_sft_run(folder: Path, seed: int = 0, steps: int = 60) -> Path:
    """Fine-tuning of three passes, validated and evaluated (greedy alone) at step 0 and after every fifth."""
    rng = random.Random(f"sft {seed}")
    _begin(folder, SFT_RECIPE.format(seed=seed))
    (folder / "metrics.jsonl").write_text(_lines([sft_metrics_row(s, steps, rng) for s in range(1, steps + 1)]))
    measured = range(0, steps + 1, 5)
    (folder / "validation.jsonl").write_text(_lines([validation_row(step, steps) for step in measured]))
    (folder / "evals.jsonl").write_text(_lines([eval_row(step, 0.0, rng) for step in measured]))
    for step in measured:
        write_responses(folder, step, 0.0, _responses(step, 0.0, rng, hostile=False))
    return folder


def _begin(folder: Path, recipe: str) -> None:
    (folder / "evals").mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe)
    environment = [{"simplerl": "0.1.0", "torch": "2.13.0", "device": {"kind": "cpu", "threads": 2}, "git": "abc1234"}]
    (folder / "environment.json").write_text(json.dumps(environment))


def write_responses(folder: Path, step: int, heat: float, rows: list[dict[str, object]]) -> None:
    path = folder / "evals" / f"step-{step:06d}-arithmetic-test-t{heat:g}.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)


def write_run(
    folder: Path, seed: int = 0, steps: int = 60, hostile: bool = False, model: str = "tiny-math-base"
) -> Path:
    """A run of `steps` steps, evaluated at step 0 and after every fifth, with the responses of each evaluation."""
    rng = random.Random(f"{seed}")
    _begin(folder, RECIPE.format(seed=seed, steps=steps, model=model))
    (folder / "rollouts").mkdir()
    (folder / "metrics.jsonl").write_text(_lines([metrics_row(step, rng) for step in range(1, steps + 1)]))
    keys = [("arithmetic-test", 0.0), ("arithmetic-test", 1.0), ("arithmetic-hard", 0.0)]
    evals = [eval_row(step, heat, rng, name) for step in range(0, steps + 1, 5) for name, heat in keys]
    (folder / "evals.jsonl").write_text(_lines(evals))
    for step in range(0, steps + 1, 5):
        for heat in (0.0, 1.0):
            write_responses(folder, step, heat, _responses(step, heat, rng, hostile))
    return folder
