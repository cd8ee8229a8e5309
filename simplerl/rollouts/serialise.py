"""Graded rollouts as tensors, so that a checkpoint can hold batches that were sampled and not trained on yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import orjson
import torch
from torch import Tensor

from simplerl.rollouts.collect import Groups
from simplerl.types import GradedRollout, Prompt, Rollout, Verdict


def pack(batches: Mapping[int, Groups], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Batches by number, exactly: token ids and log-probs one after the other, the rest as JSON in bytes.

    A prompt is kept as its place in `prompts`.
    """
    places = {_key(prompt): place for place, prompt in enumerate(prompts)}
    numbered = [(n, g, each) for n, groups in batches.items() for g, group in enumerate(groups) for each in group]
    rows = [_row(n, g, places[_key(each.rollout.prompt)], each) for n, g, each in numbered]
    rollouts = [each.rollout for _, _, each in numbered]
    return {
        "tokens": torch.tensor([token for each in rollouts for token in each.token_ids]),
        "logprobs": torch.tensor([p for each in rollouts for p in each.sampled_logprobs], dtype=torch.float64),
        "rows": torch.frombuffer(bytearray(orjson.dumps(rows)), dtype=torch.uint8),
    }


def unpack(kept: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[int, Groups]:
    """The inverse of `pack`."""
    rows = orjson.loads(kept["rows"].numpy().tobytes())
    lengths = [row["length"] for row in rows]
    tokens, logprobs = (kept[name].split(lengths) for name in ("tokens", "logprobs"))
    graded = [
        (row["batch"], row["group"], _graded(row, prompts, ids.tolist(), values.tolist()))
        for row, ids, values in zip(rows, tokens, logprobs, strict=True)
    ]
    return {
        number: [[each for _, _, each in group] for _, group in groupby(batch, key=lambda item: item[1])]
        for number, batch in ((n, list(items)) for n, items in groupby(graded, key=lambda item: item[0]))
    }


def _key(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    """What tells prompts apart; one that comes back from another process is another object."""
    return prompt.problem.id, prompt.token_ids


def _row(number: int, group: int, place: int, graded: GradedRollout) -> dict[str, Any]:
    rollout, verdict = graded.rollout, graded.verdict
    return {
        "batch": number,
        "group": group,
        "prompt": place,
        "length": len(rollout.token_ids),
        "id": rollout.request_id,
        "text": rollout.text,
        "finish": rollout.finish_reason,
        "version": rollout.policy_version,
        "verdict": [verdict.label, verdict.extracted, verdict.method, verdict.seconds],
        "reward": graded.reward,
    }


def _graded(row: Any, prompts: Sequence[Prompt], tokens: list[int], logprobs: list[float]) -> GradedRollout:
    rollout = Rollout(
        request_id=row["id"],
        prompt=prompts[row["prompt"]],
        token_ids=tuple(tokens),
        sampled_logprobs=tuple(logprobs),
        text=row["text"],
        finish_reason=row["finish"],
        policy_version=row["version"],
    )
    return GradedRollout(rollout, Verdict(*row["verdict"]), row["reward"])
