"""Graded rollouts as tensors, so that a checkpoint can hold batches that were sampled and not yet trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import orjson
import torch
from torch import Tensor

from simplerl.rollouts.collect import Groups
from simplerl.types import GradedRollout, Prompt, Rollout, Turn, Verdict


def pack(batches: Mapping[int, Groups], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Batches by number, without loss: token ids and log-probs concatenated, the rest as JSON in bytes.

    A prompt is stored as its index in `prompts`.
    """
    prompt_indices = {_key(prompt): index for index, prompt in enumerate(prompts)}
    numbered = [(n, g, each) for n, groups in batches.items() for g, group in enumerate(groups) for each in group]
    rows = [_row(n, g, prompt_indices[_key(each.rollout.prompt)], each) for n, g, each in numbered]
    rollouts = [each.rollout for _, _, each in numbered]
    return {
        "tokens": torch.tensor([token for each in rollouts for token in each.token_ids]),
        "logprobs": torch.tensor([p for each in rollouts for p in each.sampled_logprobs], dtype=torch.float64),
        "rows": torch.frombuffer(bytearray(orjson.dumps(rows)), dtype=torch.uint8),
    }


def unpack(saved: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[int, Groups]:
    """The inverse of `pack`."""
    rows = orjson.loads(saved["rows"].numpy().tobytes())
    tokens, logprobs = iter(saved["tokens"].tolist()), iter(saved["logprobs"].tolist())
    graded = [(row["batch"], row["group"], _graded(row, prompts, tokens, logprobs)) for row in rows]
    return {
        number: [[each for _, _, each in group] for _, group in groupby(batch, key=lambda item: item[1])]
        for number, batch in ((n, list(items)) for n, items in groupby(graded, key=lambda item: item[0]))
    }


def _key(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    """Identify a prompt by value: a prompt that returns from another process is a new object."""
    return prompt.problem.id, prompt.token_ids


def _row(number: int, group: int, prompt_index: int, graded: GradedRollout) -> dict[str, Any]:
    rollout, verdict = graded.rollout, graded.verdict
    return {
        "batch": number,
        "group": group,
        "prompt": prompt_index,
        "turns": [[len(turn.token_ids), turn.text, turn.sampled_logprobs is not None] for turn in rollout.turns],
        "id": rollout.request_id,
        "finish": rollout.finish_reason,
        "version": rollout.policy_version,
        "verdict": [verdict.label, verdict.extracted, verdict.method, verdict.seconds],
        "reward": graded.reward,
    }


def _graded(
    row: Mapping[str, Any], prompts: Sequence[Prompt], tokens: Iterator[int], logprobs: Iterator[float]
) -> GradedRollout:
    rollout = Rollout(
        request_id=row["id"],
        prompt=prompts[row["prompt"]],
        turns=tuple(_turn(length, text, sampled, tokens, logprobs) for length, text, sampled in row["turns"]),
        finish_reason=row["finish"],
        policy_version=row["version"],
    )
    return GradedRollout(rollout, Verdict(*row["verdict"]), row["reward"])


def _turn(length: int, text: str, is_sampled: bool, tokens: Iterator[int], logprobs: Iterator[float]) -> Turn:
    ids = tuple(next(tokens) for _ in range(length))
    return Turn(ids, text, tuple(next(logprobs) for _ in range(length)) if is_sampled else None)
