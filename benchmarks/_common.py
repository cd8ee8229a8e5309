"""What the speed benchmarks share: their options, random models, prompts, and the jobs that programs are given."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from _contest import scratch
from _counting import Shape

CHARACTERS = "0123456789+-*/=() .,?!:\n\\{}[]<>^_$abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHAPES = {
    "0.3m": (64, 256, 4, 2, 1),
    "1m": (128, 512, 4, 4, 2),
    "5m": (256, 1024, 5, 8, 4),
    "24m": (512, 2048, 6, 8, 4),
}
"""Hidden and intermediate size, layers, heads, key-value heads."""
POSITIONS = 16_384


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every speed benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", default="1m", choices=SHAPES, help="size of the random Qwen2 model")
    made.add_argument("--vocab", type=int, default=96)
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    made.add_argument("--peer-dtypes", help="dtypes in which peers run, separated by commas; empty: --dtype")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--warm-up", type=int, default=2)
    made.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    made.add_argument("--new-tokens", type=int, default=128, help="tokens of a response")
    made.add_argument("--samples", type=int, default=8, help="responses to a prompt")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of our recipe")
    return made


def shape_of(options: argparse.Namespace, *, name: str | None = None, vocab: int | None = None) -> Shape:
    return Shape(*SHAPES[name or options.shape], vocab or options.vocab)


def peer_jobs(options: argparse.Namespace, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A peer's jobs by what is added to its name: one for each dtype."""
    dtypes = (options.peer_dtypes or options.dtype).split(",")
    return {"" if dtype == options.dtype else f", {dtype}": job | {"dtype": dtype} for dtype in dtypes}


def make_model(shape: Shape) -> Path:
    """A folder with a random Qwen2 and a tokenizer of single characters, whose end token the model cannot sample.

    Its id lies outside the model's vocabulary, and the model's settings name none, so every response has full length.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    folder = scratch()
    Qwen2ForCausalLM(config).save_pretrained(folder)
    _tokenizer(shape.vocab).save_pretrained(folder)
    return folder


def _tokenizer(vocab: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", *CHARACTERS][:vocab]
    words += [f"<extra{number}>" for number in range(vocab - len(words))] + ["<end>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def random_prompts(count: int, length: int) -> list[dict[str, Any]]:
    """Sums, padded on the left to `length` characters, each a token."""
    generator = random.Random(0)
    prompts = []
    for _ in range(count):
        left, right = generator.randint(0, 99), generator.randint(0, 99)
        text = f"{left}+{right}=".rjust(length, "x")[-length:]
        ids = [1 + CHARACTERS.index(character) for character in text]
        prompts.append({"ids": ids, "text": text, "question": text, "answer": str(left + right)})
    return prompts


def source_prompts(model: Path, count: int) -> list[dict[str, Any]]:
    """Problems of the `arithmetic` source through the model's chat template, as training makes them."""
    from simplerl.config import Recipe, validate_recipe
    from simplerl.train.build.rl import training_prompts
    from simplerl.train.build.services import load_tokenizer

    table = {
        "model": {"path": str(model)},
        "data": {"source": "arithmetic", "template": "chat", "max_prompt_tokens": 160},
        "rollout": {"prompts_per_step": 1, "samples_per_prompt": 8},
        "train": {"minibatch_size": 8},
    }
    recipe: Any = validate_recipe(table, kind=Recipe)
    made = training_prompts(recipe, load_tokenizer(recipe), print)
    chosen = random.Random(0).sample(made, count)
    return [
        {"ids": list(p.token_ids), "text": p.text, "question": p.problem.question, "answer": p.problem.answer}
        for p in chosen
    ]


def make_job(options: argparse.Namespace, model: Path, **more: Any) -> dict[str, Any]:
    """What every program is told; see `_ours.py` and `peers/`."""
    config = json.loads((model / "config.json").read_text())
    job = {
        "model": str(model),
        "vocab": config["vocab_size"],
        "dtype": options.dtype,
        "threads": options.threads,
        "algorithm": "grpo",
        "prompts_per_step": 8,
        "samples": options.samples,
        "max_tokens": options.new_tokens,
        "fixed": True,
        "canned": False,
        "compile": False,
        "epochs": 1,
        "learning_rate": 1e-9,
        "set": options.set,
    }
    return job | more
