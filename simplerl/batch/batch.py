"""The training batch, ragged: flat tensors and lengths. The learner pads or packs at the last moment.

N sequences hold S tokens, R of which the policy sampled: the response tokens. Response-level tensors are flat [R], so
losses need no mask. A prompt, or the environment's turns of a response, have no entry in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from simplerl.types import Example, GradedRollout

T = TypeVar("T", bound="Batch")


def _level(name: str) -> dict[str, str]:
    return {"level": name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Graded rollouts as tensors."""

    tokens: Tensor = field(metadata=_level("token"))
    """[S] int64: each sequence's prompt, then all turns of its response."""

    loss_mask: Tensor = field(metadata=_level("token"))
    """[S] bool: True for the R tokens that the policy sampled; they alone are trained on."""

    lengths: Tensor = field(metadata=_level("sequence"))
    """[N] int64: tokens per sequence."""

    prompt_lengths: Tensor = field(metadata=_level("sequence"))
    """[N] int64, all >= 1."""

    response_lengths: Tensor = field(metadata=_level("sequence"))
    """[N] int64, all >= 1: tokens of each response that the policy sampled. With one turn, lengths - prompt_lengths."""

    groups: Tensor = field(metadata=_level("sequence"))
    """[N] int64: responses to the same prompt share a number."""

    rewards: Tensor = field(metadata=_level("sequence"))
    """[N] float32, one scalar per response."""

    truncated: Tensor = field(metadata=_level("sequence"))
    """[N] bool: True if the response ended at the length limit."""

    sampled_logprobs: Tensor = field(metadata=_level("response"))
    """[R] float32: the engine's log-probs."""

    def __len__(self) -> int:
        return len(self.rewards)

    def select(self, rows: Tensor) -> Self:
        """The batch of these rows, in this order."""
        index = {
            "sequence": rows,
            "token": ragged_index(self.lengths, rows),
            "response": ragged_index(self.response_lengths, rows),
        }
        chosen: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            chosen[item.name] = None if value is None else value[index[item.metadata["level"]]]
        return type(self)(**chosen)

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            moved[item.name] = None if value is None else value.to(device)
        return type(self)(**moved)

    def extend(self, cls: type[T], **more: Tensor | None) -> T:
        """This batch with what the next stage adds."""
        everything: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)} | more
        return cls(**everything)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch(Batch):
    """A batch with what the learner's models say of it before the first update."""

    old_logprobs: Tensor | None = field(metadata=_level("response"))
    """[R] float32, the learner's own at sampling time; None where one update follows, whose own forward pass gives
    them."""

    ref_logprobs: Tensor | None = field(metadata=_level("response"))
    """[R] float32 of the reference policy, where the algorithm has one."""

    values: Tensor | None = field(metadata=_level("response"))
    """[R] float32: the critic's value of the state before each response token, where there is a critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch(ScoredBatch):
    """A batch ready to train on."""

    advantages: Tensor = field(metadata=_level("response"))
    """[R] float32."""

    returns: Tensor | None = field(metadata=_level("response"))
    """[R] float32: the critic's targets, where there is a critic."""


def collate(groups: list[list[GradedRollout]]) -> Batch:
    """Graded rollouts [P][G] as one batch of N = sum of group sizes."""
    rows = [(number, graded) for number, group in enumerate(groups) for graded in group]
    rollouts = [graded.rollout for _, graded in rows]
    prompts, responses, masks = (
        [r.prompt.token_ids for r in rollouts],
        [r.token_ids for r in rollouts],
        [r.loss_mask for r in rollouts],
    )
    return Batch(
        tokens=_flat(prompts, responses),
        loss_mask=_flat([(False,) * len(prompt) for prompt in prompts], masks),
        lengths=torch.tensor([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        response_lengths=torch.tensor([sum(mask) for mask in masks]),
        groups=torch.tensor([number for number, _ in rows]),
        rewards=torch.tensor([graded.reward for _, graded in rows], dtype=torch.float32),
        truncated=torch.tensor([r.finish_reason == "length" for r in rollouts]),
        sampled_logprobs=torch.tensor([p for r in rollouts for p in r.sampled_logprobs], dtype=torch.float32),
    )


def collate_examples(examples: Sequence[Example]) -> TrainBatch:
    """Given responses as a batch for supervised fine-tuning: advantages of 1, no log-probs of a sampling policy."""
    prompts, responses = [e.prompt.token_ids for e in examples], [e.response_ids for e in examples]
    prompt_lengths, response_lengths = (torch.tensor([len(ids) for ids in each]) for each in (prompts, responses))
    count, tokens = len(examples), int(response_lengths.sum())
    return TrainBatch(
        tokens=_flat(prompts, responses),
        loss_mask=_flat([(False,) * len(ids) for ids in prompts], [(True,) * len(ids) for ids in responses]),
        lengths=prompt_lengths + response_lengths,
        prompt_lengths=prompt_lengths,
        response_lengths=response_lengths,
        groups=torch.arange(count),
        rewards=torch.zeros(count),
        truncated=torch.zeros(count, dtype=torch.bool),
        sampled_logprobs=torch.zeros(tokens),
        old_logprobs=None,
        ref_logprobs=None,
        values=None,
        advantages=torch.ones(tokens),
        returns=None,
    )


def _flat(prompts: Sequence[Sequence[Any]], responses: Sequence[Sequence[Any]]) -> Tensor:
    """Each sequence's prompt, then its response, as one flat tensor [S]."""
    return torch.tensor([x for pair in zip(prompts, responses, strict=True) for part in pair for x in part])


# --- ragged tensors ---------------------------------------------------------------------------------------------------


def ragged_index(lengths: Tensor, rows: Tensor) -> Tensor:
    """Where the elements of `rows` stand in a flat tensor whose rows have `lengths`: [sum of lengths[rows]]."""
    starts = lengths.cumsum(0) - lengths
    chosen = lengths[rows]
    return torch.repeat_interleave(starts[rows], chosen) + place_in_row(chosen)


def row_of(lengths: Tensor) -> Tensor:
    """The row each element of a flat tensor belongs to: [R]."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def last_index(lengths: Tensor) -> Tensor:
    """Where each row's last element stands in a flat tensor: [N]."""
    return lengths.cumsum(0) - 1


def row_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum over each row: [N]."""
    return values.new_zeros(len(lengths)).index_add_(0, row_of(lengths), values)


def _inside(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def to_padded(values: Tensor, lengths: Tensor, fill: float = 0.0) -> Tensor:
    """[N, T] with each row on the left and `fill` to its right."""
    width = int(lengths.max())
    padded = values.new_full((len(lengths), width), fill)
    padded[_inside(lengths, width)] = values
    return padded


def from_padded(padded: Tensor, lengths: Tensor) -> Tensor:
    """The flat tensor [R] of a right-padded one."""
    return padded[_inside(lengths, padded.shape[1])]


def place_in_row(lengths: Tensor) -> Tensor:
    """0, 1, 2, ... of every row, one row after the other."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum()), device=lengths.device) - torch.repeat_interleave(starts, lengths)
