"""Given responses as training examples: a prompt as in reinforcement learning, the response, and its end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simplerl.data.overlap import exact_key
from simplerl.data.templates import render, tokenize_all
from simplerl.errors import DataError
from simplerl.seeding import seed_for
from simplerl.types import Example, Problem, Prompt

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_MARK = "A response."


@dataclass(frozen=True, slots=True)
class Examples:
    """Training and validation examples, and what was left out."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    end_id: int
    without_response: int
    long_prompts: int
    long_responses: int


def build_examples(
    problems: Sequence[Problem],
    template: str,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    validation: float = 0.0,
    seed: int = 0,
) -> Examples:
    """An example of every problem with a solution, in order. What is too long is left out whole, never cut.

    A share `validation` of the questions is kept apart, by a hash of the question, so that a question answered twice
    is on one side. Raises `DataError` when nothing is left to train on.
    """
    solved = [problem for problem in problems if (problem.solution or "").strip()]
    end_id = end_token(template, tokenizer)
    texts = [render(template, problem.question, tokenizer) for problem in solved]
    prompts, responses = tokenize_all(texts, tokenizer), _responses(solved, tokenizer, end_id)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for problem, text, prompt, response in zip(solved, texts, prompts, responses, strict=True):
        if len(prompt) <= max_prompt_tokens and len(response) <= max_response_tokens:
            side = sides[_is_validation(problem, validation, seed)]
            side.append(Example(Prompt(problem, text, tuple(prompt)), tuple(response)))
    if not sides[0]:
        raise DataError(
            f"no example is left to train on: of {len(problems)} problems {len(solved)} have a solution; "
            f"data.max_prompt_tokens={max_prompt_tokens}, train.max_response_tokens={max_response_tokens}, "
            f"train.validation={validation:g}"
        )
    long_prompts = sum(len(row) > max_prompt_tokens for row in prompts)
    long_responses = sum(len(row) > max_response_tokens for row in responses)
    return Examples(tuple(sides[0]), tuple(sides[1]), end_id, len(problems) - len(solved), long_prompts, long_responses)


def end_token(template: str, tokenizer: Any) -> int:
    """The token that ends a response: what the prompt's own form puts there, else the tokenizer's end token.

    A chat template shows what follows an answer. Raises `DataError` without such a token.
    """
    if template == "chat":
        text = render("chat", "", tokenizer)
        messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": _MARK}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        after = tokenizer(whole.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
        if after and after[0] in tokenizer.all_special_ids:
            return after[0]
    else:
        text = render(template, "")
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    if TURN_START in text and turn_end is not None and turn_end != tokenizer.unk_token_id:
        return turn_end
    if tokenizer.eos_token_id is None:
        raise DataError(f"template {template!r}: the tokenizer has no end token, so a response cannot learn to end")
    return tokenizer.eos_token_id


def _responses(problems: Sequence[Problem], tokenizer: Any, end_id: int) -> list[list[int]]:
    """Token ids with the end token. The text is tokenised apart from the prompt, as a sampled response is."""
    texts = [(problem.solution or "").strip() for problem in problems]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [[*row, end_id] for row in rows]


def _is_validation(problem: Problem, share: float, seed: int) -> bool:
    return seed_for(seed, "validation", exact_key(problem.question)) < share * (1 << 63)
