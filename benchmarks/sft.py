"""SFT on 2,027 real long responses with a small random Qwen2: loss, packing, tokens per second, peak memory.

    SIMPLERL_DATA=... python benchmarks/sft.py [--hidden 128 --layers 4 --vocab 8192] [--epochs 1]

Prints JSON lines, then a Markdown table. Each layout is measured in a process of its own, so that peak memory is its
own. `naive` pads eight sequences in the order they come, as trainers do by default; `padded` is this project's
length-sorted padding to the token budget; `packed` pads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

BUDGET = 16_384
BATCH = 128
NAIVE_ROWS = 8
TOKENIZER = 8192


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps timed per layout")
    parser.add_argument("--model", type=Path, help="a folder to keep the random model in")
    parser.add_argument("--parts", default="longest,naive,padded,packed,train", help="what to measure")
    parser.add_argument("--part", choices=("train", "naive", "padded", "packed", "longest"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_model(folder: Path, hidden: int, layers: int, vocab: int) -> None:
    """Qwen2 as published but small: grouped heads, biased projections, a tied head; a BPE trained on the responses."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from simplerl.data.base import load_source, source_config
    from simplerl.pretrain import train_tokenizer

    texts = [str(problem.solution) for problem in load_source(source_config("longcot"))]
    tokenizer = train_tokenizer(texts, min(vocab, TOKENIZER))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(model: Path, **train: Any) -> Any:
    from simplerl.config import SFTRecipe, validate_recipe

    block = {"batch_size": BATCH, "micro_batch_tokens": BUDGET, "max_response_tokens": BUDGET, "validation": 0.02}
    table = {
        "kind": "sft",
        "model": {"path": str(model)},
        "data": {"source": "longcot", "max_prompt_tokens": 2048},
        "train": block | train,
        "actor": {"learning_rate": 1e-3},
        "eval": {"every": 5},
        "checkpoint": {"every": 10_000},
    }
    return validate_recipe(table, kind=SFTRecipe)


def train_whole(model: Path, epochs: int) -> dict[str, Any]:
    """One run of `simplerl sft` over everything."""
    from simplerl.storage.records import RunFolder
    from simplerl.train.run import train

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(train(recipe(model, epochs=epochs), Path(folder) / "run", plain=True))
        rows, validation = run.read_metrics(), run.read_validation()
    tokens = sum(row["tokens/prompt"] + row["tokens/response"] for row in rows)
    return {
        "steps": len(rows),
        "tokens": tokens,
        "loss": [rows[0]["loss/sft"], rows[-1]["loss/sft"]],
        "validation": [validation[0]["loss"], validation[-1]["loss"]],
        "fill": sum(row["pack/token_utilization"] * row["pack/count"] for row in rows)
        / sum(row["pack/count"] for row in rows),
        "tokens_per_second": tokens / sum(row["time/update"] for row in rows),
    }


def naive_split(lengths: Any, budget: int) -> list[Any]:
    import torch

    return list(torch.arange(len(lengths)).split(NAIVE_ROWS))


def layout_speed(model: Path, layout: str, steps: int) -> dict[str, Any]:
    """Median tokens per second of an optimiser step, and the share of computed tokens that are no padding."""
    from simplerl.batch.batch import collate_examples

    learner, examples, loss = prepared(model, packing=layout == "packed")
    if layout == "naive":
        learner.split = naive_split
    order = torch_permutation(len(examples))
    seconds, real, computed = [], 0, 0
    for step in range(steps):
        batch = collate_examples([examples[i] for i in order[step * BATCH : (step + 1) * BATCH]])
        parts = learner.split(batch.lengths, BUDGET)
        real += int(batch.lengths.sum())
        computed += sum(learner.lay_out(batch.select(rows)).ids.numel() for rows in parts)
        begun = time.perf_counter()
        learner.update(batch, loss)
        seconds.append((time.perf_counter() - begun) / int(batch.lengths.sum()))
    return {"layout": layout, "tokens_per_second": 1 / median(seconds), "efficiency": real / computed}


def longest(model: Path) -> dict[str, Any]:
    """One update on one sequence of 16,384 tokens: the longest response, filled up with others."""
    from dataclasses import replace
    from itertools import chain

    from simplerl.batch.batch import collate_examples

    learner, examples, loss = prepared(model, packing=True)
    ordered = sorted(examples, key=lambda e: -len(e.response_ids))
    room = BUDGET - len(ordered[0].prompt.token_ids)
    chosen = replace(ordered[0], response_ids=tuple(chain.from_iterable(e.response_ids for e in ordered[:9]))[:room])
    before = peak_gib()
    begun = time.perf_counter()
    learner.update(collate_examples([chosen]), loss)
    tokens = len(chosen.prompt.token_ids) + len(chosen.response_ids)
    return {"tokens": tokens, "before_gib": before, "seconds": time.perf_counter() - begun}


def prepared(model: Path, *, packing: bool) -> Any:
    import torch
    from transformers import AutoTokenizer

    from simplerl.learner.learner import LocalLearner
    from simplerl.train.build.sft import training_examples
    from simplerl.train.sft import LikelihoodLoss

    settings = recipe(model, packing=packing)
    examples = training_examples(settings, AutoTokenizer.from_pretrained(model), print_to_stderr)
    loss = LikelihoodLoss()
    return LocalLearner(settings, loss, 100, torch.device("cpu")), examples.training, loss


def torch_permutation(size: int) -> list[int]:
    from simplerl.seeding import permutation

    return permutation(size, 0, "benchmark")


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """A part in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--model", str(options.model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = done.stdout.strip().splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def run_part(options: argparse.Namespace) -> dict[str, Any]:
    if options.part == "train":
        result = train_whole(options.model, options.epochs)
    elif options.part == "longest":
        result = longest(options.model)
    else:
        result = layout_speed(options.model, options.part, options.steps)
    return {"part": options.part, **result, "peak_gib": peak_gib()}


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("\n| layout | real share of computed tokens | tokens/s | against naive | peak memory, GiB |")
    print("|---|---|---|---|---|")
    for name in ("naive", "padded", "packed"):
        row = rows[name]
        ratio = row["tokens_per_second"] / rows["naive"]["tokens_per_second"]
        print(
            f"| {name} | {100 * row['efficiency']:.1f} % | {row['tokens_per_second']:,.0f} | {ratio:.2f} | "
            f"{row['peak_gib']:.2f} |"
        )


def main() -> None:
    options = arguments()
    if options.part:
        print(json.dumps(run_part(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = Path(folder) / "model"
        if not (options.model / "config.json").exists():
            make_model(options.model, options.hidden, options.layers, options.vocab)
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
        print(
            json.dumps({"threads": threads, **{k: v for k, v in vars(options).items() if k not in ("part", "model")}})
        )
        rows = {part: measure(part, options) for part in options.parts.split(",")}
    if {"naive", "padded", "packed"} <= rows.keys():
        print_table(rows)


if __name__ == "__main__":
    main()
