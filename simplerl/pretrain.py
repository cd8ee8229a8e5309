"""Builds the embedded base model from scratch: corpus, tokenizer, Qwen2 architecture, next-token pre-training.

The result is an ordinary `transformers` folder, which depends on one seed. docs/base-model.md gives the time it takes
and the model's scores.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from simplerl.config import Frozen
from simplerl.data.corpus import ANNEAL, MAIN, Document, Mixture, document
from simplerl.seeding import permutation, rng_for, seed_for
from simplerl.storage import atomic

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

PAD, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class BaseConfig(Frozen):
    """Settings of the embedded base model."""

    seed: int = 0
    """Seed of the corpus, the initial weights and the order of documents."""

    documents: int = Field(default=200_000, ge=1)
    """Documents of the main corpus. The model trains on each once."""

    anneal_documents: int = Field(default=12_000, ge=0)
    """Documents of the annealing phase, which follows the main corpus and sets the style of the model's answers."""

    vocab_size: int = Field(default=448, ge=300)
    """Vocabulary size of the byte-level BPE, special tokens included."""

    hidden_size: int = 160
    """Width of the hidden states; `heads` must divide it."""

    layers: int = 4
    heads: int = 5
    """Attention heads of a layer, for keys and values too."""

    intermediate_size: int = 448
    """Width of the MLP."""

    max_position_embeddings: int = 1024
    """Longest sequence, in tokens."""

    batch_tokens: int = Field(default=2048, ge=256)
    """Tokens per optimiser step, padding included."""

    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest learning rate on the main corpus."""

    anneal_learning_rate: float = Field(default=3e-4, gt=0)
    """Highest learning rate of the annealing phase."""

    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of a phase's steps over which the learning rate rises."""

    weight_decay: float = Field(default=0.05, ge=0)


def render_document(doc: Document) -> str:
    """The document's training text, end token included."""
    if doc.question is None:
        return doc.text + PAD
    return f"{START}user\n{doc.question}{END}\n{START}assistant\n{doc.text}{END}"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE with Qwen2's pre-tokeniser and special tokens.

    It encodes any text, and each digit as one token. Another
    pre-tokeniser would be lost: for a qwen2 model, `AutoTokenizer` silently replaces it by Qwen2's.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    bpe = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
    )


def new_model(config: BaseConfig, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Make a Qwen2 model with random weights: matrices are normal with a standard deviation of 0.04."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed_for(config.seed, "initial weights"))
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return model


def batch_by_length(tokens: list[list[int]], batch_tokens: int, seed: int) -> list[list[int]]:
    """Indices of each batch's documents, batches in shuffled order. Similar lengths share a batch, to save padding."""
    order = permutation(len(tokens), seed, "documents")
    result: list[list[int]] = []
    pool = 4096
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda i: len(tokens[i]))
        batch: list[int] = []
        for i in chunk:
            if batch and (len(batch) + 1) * len(tokens[i]) > batch_tokens:
                result.append(batch)
                batch = []
            batch.append(i)
        result.append(batch)
    return [result[i] for i in permutation(len(result), seed, "batches")]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of a step (from 0): linear warm-up over the share `warmup` of the steps, then cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def corpus_texts(config: BaseConfig, phase: str, count: int, mixture: Mixture) -> list[str]:
    """Training texts of one phase of pre-training; `phase` seeds their generator."""
    rng = rng_for(config.seed, phase)
    return [render_document(document(rng, mixture)) for _ in range(count)]


def build_base(out: Path, config: BaseConfig, report: Callable[[str], None] = print) -> None:
    """Build the model and write it to `out` as a `transformers` folder, which appears complete or not at all."""
    texts = corpus_texts(config, "corpus", config.documents, MAIN)
    tokenizer = train_tokenizer(texts[:20_000], config.vocab_size)
    model = new_model(config, tokenizer)
    report(f"{config.documents:,} documents, vocabulary {len(tokenizer)}, {model.num_parameters():,} parameters")
    train_one_pass(model, tokenizer, texts, config, config.learning_rate, report)
    if config.anneal_documents:
        texts = corpus_texts(config, "anneal", config.anneal_documents, ANNEAL)
        train_one_pass(model, tokenizer, texts, config, config.anneal_learning_rate, report)
    with atomic.new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def train_one_pass(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    texts: list[str],
    config: BaseConfig,
    peak: float,
    report: Callable[[str], None],
) -> None:
    """Train on each text once, with its own learning-rate schedule, whose highest rate is `peak`."""
    import torch
    from torch.nn.functional import cross_entropy

    tokens = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    plan = batch_by_length(tokens, config.batch_tokens, config.seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    total, seen, started = 0.0, 0, time.perf_counter()
    for step, indices in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, len(plan), peak, config.warmup)
        ids, labels = pad_batch([tokens[i] for i in indices])
        logits = model(ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total, seen = total + loss.item(), seen + ids.numel()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            speed = f"{seen / seconds:,.0f} tokens/s  {seconds:.0f} s"
            report(f"step {step + 1}/{len(plan)}  loss {total / 100:.4f}  {speed}")
            total = 0.0


def pad_batch(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right: ids [B, T], and labels [B, T] with -100 on padding. Causal attention never sees padding."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return ids, labels
