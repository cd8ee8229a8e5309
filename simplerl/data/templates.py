"""How a problem is put to a model: prompt templates and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simplerl.errors import DataError
from simplerl.formatting import did_you_mean
from simplerl.types import Problem, Prompt

_QWEN25_MATH_COT_V0 = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{input}<|im_end|>\n"
    "<|im_start|>assistant"
)
PLAIN = {
    "qwen25-math-cot": _QWEN25_MATH_COT_V0 + "\n",
    # The text stored with the v0 training data lacks the last newline; its evaluation has it.
    "qwen25-math-cot-v0": _QWEN25_MATH_COT_V0,
    "qwen-boxed": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{input}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "abel": "Question:\n{input}\nAnswer:\nLet's think step by step.\n",
}
NAMES = (*PLAIN, "chat")


def render(template: str, question: str, tokenizer: Any = None) -> str:
    """The prompt's text. Only `chat`, the tokenizer's own template, looks at the tokenizer. Raises `DataError`."""
    if template in PLAIN:
        return PLAIN[template].replace("{input}", question)
    if template != "chat":
        hint = did_you_mean(template, NAMES)
        raise DataError(f"no template {template!r}{hint} Available: {', '.join(NAMES)}")
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "template 'chat' is the tokenizer's own, but this tokenizer has none; "
            f"set data.template to one of {', '.join(PLAIN)}"
        )
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def tokenize(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a prompt: one BOS where the tokenizer puts one, never two, and no end token."""
    return tokenize_all([text], tokenizer)[0]


def tokenize_all(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """`tokenize` of each text."""
    if not texts:
        return []
    # Chat templates write the BOS into the text; a tokenizer that adds its own would double it.
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("")["input_ids"][:1] != [bos]:
        return [list(row) for row in rows]
    return [list(row) if row[:1] == [bos] else [bos, *row] for row in rows]


def build_prompts(
    problems: Sequence[Problem], template: str, tokenizer: Any, max_prompt_tokens: int
) -> tuple[list[Prompt], int]:
    """The prompts of at most `max_prompt_tokens` tokens, in order, and the number of longer ones, which are dropped.

    Raises `DataError` when all are too long.
    """
    texts = [render(template, problem.question, tokenizer) for problem in problems]
    rows = tokenize_all(texts, tokenizer)
    prompts = [
        Prompt(problem, text, tuple(row))
        for problem, text, row in zip(problems, texts, rows, strict=True)
        if len(row) <= max_prompt_tokens
    ]
    if problems and not prompts:
        raise DataError(
            f"all {len(problems)} prompts are longer than data.max_prompt_tokens={max_prompt_tokens}; "
            f"the shortest has {min(map(len, rows))} tokens"
        )
    return prompts, len(problems) - len(prompts)
