"""From a ragged batch to what a model is run on: how its sequences are split into micro-batches and laid out in each.

Every layout gives the same numbers; they differ in what is computed for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from simplerl.batch.batch import Batch, place_in_row, row_of, to_padded


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model is run on, and where in it the response tokens are predicted from."""

    ids: Tensor
    """[n, T] int64: a row per sequence, padded on the right (causal attention never looks there, so padding needs no
    mask); or [1, S], all sequences one after the other."""

    logit_positions: Tensor
    """[R] int64 into the flattened ids: the position before each response token, whose logits predict it."""

    targets: Tensor
    """[R] int64, the response tokens."""

    positions: Tensor | None = None
    """[1, S] int64, not if padded: each token's place in its own sequence."""

    cu_seqlens: Tensor | None = None
    """[n + 1] int32, packed sequences only: where each begins, and the end of the last."""

    segments: Tensor | None = None
    """[m, 4] int64, shared prompts only: see `simplerl.cpu.ops.rotary_attention`."""


class Padded:
    """A row per sequence, padded to the longest: for every model and device."""

    @staticmethod
    def tokens(batch: Batch) -> int:
        """What a model computes of the batch in one piece, without padding."""
        return int(batch.lengths.sum())

    @staticmethod
    def split(batch: Batch, budget: int) -> list[Tensor]:
        """Rows in groups of similar length, each at most `budget` tokens once padded; a longer row stands alone."""
        lengths, groups = batch.lengths.tolist(), list[list[int]]()
        for row in _longest_first(lengths):
            # Rows come longest first, so a group's first row is its width.
            if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
                groups[-1].append(row)
            else:
                groups.append([row])
        return [torch.tensor(group) for group in groups]

    @staticmethod
    def lay_out(batch: Batch) -> Layout:
        ids = to_padded(batch.tokens, batch.lengths)
        trained = _trained(batch)
        row, offset = row_of(batch.lengths)[trained], place_in_row(batch.lengths)[trained]
        return Layout(ids, logit_positions=row * ids.shape[1] + offset - 1, targets=batch.tokens[trained])


class Packed:
    """All sequences one after the other, which is what a ragged batch is: nothing is padding."""

    @staticmethod
    def tokens(batch: Batch) -> int:
        return int(batch.lengths.sum())

    @staticmethod
    def split(batch: Batch, budget: int) -> list[Tensor]:
        """Rows in packs of at most `budget` tokens; a longer row stands alone."""
        return [torch.tensor(pack) for pack in first_fit(batch.lengths.tolist(), budget)]

    @staticmethod
    def lay_out(batch: Batch) -> Layout:
        ends, trained = batch.lengths.cumsum(0), _trained(batch)
        return Layout(
            ids=batch.tokens[None],
            logit_positions=trained - 1,
            targets=batch.tokens[trained],
            positions=place_in_row(batch.lengths)[None],
            cu_seqlens=torch.cat([ends.new_zeros(1), ends]).int(),
        )


class Shared:
    """Packed, and a prompt that several responses answer is there once. Needs the kernels' attention."""

    @staticmethod
    def tokens(batch: Batch) -> int:
        first, _ = _families(batch.groups)
        return int(batch.prompt_lengths[first].sum() + (batch.lengths - batch.prompt_lengths).sum())

    @staticmethod
    def split(batch: Batch, budget: int) -> list[Tensor]:
        """Rows in packs of at most `budget` tokens, answers to one prompt together as far as they fit."""
        prompts, responses = batch.prompt_lengths.tolist(), (batch.lengths - batch.prompt_lengths).tolist()
        siblings: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(batch.groups.tolist()):
            siblings[group].append(row)
        families: list[list[int]] = []
        sizes: list[int] = []
        for rows in siblings.values():
            for number, row in enumerate(sorted(rows, key=lambda each: -responses[each])):
                if number and sizes[-1] + responses[row] <= budget:
                    families[-1].append(row)
                    sizes[-1] += responses[row]
                else:
                    families.append([row])
                    sizes.append(prompts[row] + responses[row])
        return [torch.tensor([row for i in pack for row in families[i]]) for pack in first_fit(sizes, budget)]

    @staticmethod
    def lay_out(batch: Batch) -> Layout:
        first, family = _families(batch.groups)
        starts = batch.lengths.cumsum(0) - batch.lengths
        prompts, responses = batch.prompt_lengths[first], batch.lengths - batch.prompt_lengths
        source = torch.cat([_runs(starts[first], prompts), _runs(starts + batch.prompt_lengths, responses)])
        prompt_at = prompts.cumsum(0) - prompts
        response_at = prompts.sum() + responses.cumsum(0) - responses

        # The position of every token of the batch in this layout, [S].
        row, offset = row_of(batch.lengths), place_in_row(batch.lengths)
        inside = offset - batch.prompt_lengths[row]
        position = torch.where(inside < 0, prompt_at[family[row]] + offset, response_at[row] + inside)
        trained = _trained(batch)

        none = torch.zeros_like(prompts)
        return Layout(
            ids=batch.tokens[source][None],
            logit_positions=position[trained - 1],
            targets=batch.tokens[trained],
            positions=torch.cat([place_in_row(prompts), _runs(prompts[family], responses)])[None],
            segments=torch.cat(
                [
                    torch.stack([prompt_at, prompts, none, none], dim=1),
                    torch.stack([response_at, responses, prompt_at[family], prompts[family]], dim=1),
                ]
            ),
        )


def first_fit(sizes: list[int], budget: int) -> list[list[int]]:
    """Items in packs of at most `budget`; a larger one stands alone. First fit, the largest first."""
    packs: list[list[int]] = []
    room: list[int] = []
    for item in _longest_first(sizes):
        place = next((number for number, left in enumerate(room) if left >= sizes[item]), None)
        if place is None:
            packs.append([item])
            room.append(budget - sizes[item])
        else:
            packs[place].append(item)
            room[place] -= sizes[item]
    return packs


def _longest_first(lengths: list[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def _families(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each group, and for every row the number of its group."""
    numbers, family = groups.unique(return_inverse=True)
    first = torch.full_like(numbers, len(groups))
    return first.scatter_reduce(0, family, torch.arange(len(groups)), "amin"), family


def _runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """`lengths[i]` consecutive numbers from `starts[i]` on, one run after the other."""
    return torch.repeat_interleave(starts, lengths) + place_in_row(lengths)


def _trained(batch: Batch) -> Tensor:
    """Where the response tokens stand in the flat batch: [R]."""
    return batch.loss_mask.nonzero().squeeze(-1)
