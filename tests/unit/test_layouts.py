"""Batches and their layouts, worked by hand: where every token goes, and which rows go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch

from simplerl.batch.batch import (
    Batch,
    ScoredBatch,
    TrainBatch,
    collate,
    collate_examples,
    from_padded,
    last_index,
    place_in_row,
    row_of,
    row_sum,
    to_padded,
)
from simplerl.batch.layouts import Packed, Padded, Shared, first_fit
from simplerl.types import Example, GradedRollout, Problem, Prompt, Rollout, Verdict

pytestmark = pytest.mark.unit


def prompt(*token_ids: int) -> Prompt:
    return Prompt(Problem("p", "?", "7"), "?", token_ids)


def graded(to: Prompt, *token_ids: int) -> GradedRollout:
    rollout = Rollout.single_turn("r", to, token_ids, tuple(-0.5 * t for t in token_ids), "", "stop", 0)
    return GradedRollout(rollout, Verdict("correct"), 1.0)


def of_lengths(*groups: tuple[int, Sequence[int]]) -> Batch:
    """Groups given as (prompt tokens, response tokens of each response)."""
    return collate([[graded(prompt(*[1] * before), *[2] * size) for size in sizes] for before, sizes in groups])


# Two responses to (1, 2), with one to (3) between them.
BATCH = collate([[graded(prompt(1, 2), 10, 11, 12), graded(prompt(1, 2), 13)], [graded(prompt(3), 14, 15)]]).select(
    torch.tensor([1, 2, 0])
)


# --- layouts ----------------------------------------------------------------------------------------------------------


def values(layout: Any) -> dict[str, Any]:
    given = ((each.name, getattr(layout, each.name)) for each in fields(layout))
    return {name: value.tolist() for name, value in given if value is not None}


def test_padded_rows_start_at_their_left() -> None:
    assert values(Padded.lay_out(BATCH)) == {
        "ids": [[1, 2, 13, 0, 0], [3, 14, 15, 0, 0], [1, 2, 10, 11, 12]],
        "logit_positions": [1, 5, 6, 11, 12, 13],
        "targets": [13, 14, 15, 10, 11, 12],
    }


def test_packed_sequences_follow_each_other() -> None:
    layout = Packed.lay_out(BATCH)
    assert values(layout) == {
        "ids": [[1, 2, 13, 3, 14, 15, 1, 2, 10, 11, 12]],
        "logit_positions": [1, 3, 4, 7, 8, 9],
        "targets": [13, 14, 15, 10, 11, 12],
        "positions": [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]],
        "cu_seqlens": [0, 3, 6, 11],
    }
    assert layout.cu_seqlens is not None and layout.cu_seqlens.dtype == torch.int32


def test_shared_prompts_are_there_once_and_before_all_responses() -> None:
    # Positions of a response go on after its prompt; its first token is predicted from the prompt's last one.
    # Segments: start, length, and start and length of the prompt that it attends to.
    assert values(Shared.lay_out(BATCH)) == {
        "ids": [[1, 2, 3, 13, 14, 15, 10, 11, 12]],
        "logit_positions": [1, 2, 4, 1, 6, 7],
        "targets": [13, 14, 15, 10, 11, 12],
        "positions": [[0, 1, 0, 2, 1, 2, 2, 3, 4]],
        "segments": [[0, 2, 0, 0], [2, 1, 0, 0], [3, 1, 0, 2], [4, 2, 2, 1], [6, 3, 0, 2]],
    }


def test_tokens_that_a_layout_computes() -> None:
    assert (Padded.tokens(BATCH), Packed.tokens(BATCH), Shared.tokens(BATCH)) == (11, 11, 9)


# --- splits -----------------------------------------------------------------------------------------------------------


def split(layout: Any, batch: Batch, budget: int) -> list[list[int]]:
    return [rows.tolist() for rows in layout.split(batch, budget)]


@pytest.mark.parametrize(
    ("budget", "expected"),
    # Rows of 3, 7, 5 and 2 tokens; a micro-batch counts its longest row for each of its rows, longest first.
    [
        (1, [[1], [2], [0], [3]]),
        (9, [[1], [2], [0, 3]]),
        (10, [[1], [2, 0], [3]]),
        (14, [[1, 2], [0, 3]]),
        (20, [[1, 2], [0, 3]]),
        (21, [[1, 2, 0], [3]]),
        (28, [[1, 2, 0, 3]]),
    ],
)
def test_padded_micro_batches_count_their_padding(budget: int, expected: list[list[int]]) -> None:
    assert split(Padded, of_lengths(*[(1, [size - 1]) for size in (3, 7, 5, 2)]), budget) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    # The same rows: the longest first, each into the first pack that has room.
    [(1, [[1], [2], [0], [3]]), (9, [[1, 3], [2, 0]]), (8, [[1], [2, 0], [3]]), (10, [[1, 0], [2, 3]])],
)
def test_packed_micro_batches_are_filled_first_fit(budget: int, expected: list[list[int]]) -> None:
    assert split(Packed, of_lengths(*[(1, [size - 1]) for size in (3, 7, 5, 2)]), budget) == expected


def test_first_fit_takes_the_first_pack_with_room_and_fills_it_to_the_last_token() -> None:
    # 6 and 5 open packs with room for 4 and 5; 4 goes into the first, 3 into the second, 2 into it too, 1 nowhere.
    assert first_fit([1, 2, 3, 4, 5, 6], 10) == [[5, 3], [4, 2, 1], [0]]
    assert first_fit([2, 2, 2], 4) == [[0, 1], [2]], "equal sizes keep their order"
    assert first_fit([], 4) == []


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # A prompt of 2 with responses of 1, 4 and 3; a prompt of 1 with a response of 2. Longest responses first:
        (6, [[1], [2, 0], [3]]),  # 2 + 4 | 2 + 3 + 1 | 1 + 2
        (7, [[1], [2, 0], [3]]),  # 6 + 3 is too much; 1 goes beside the latest, 3
        (9, [[1, 2], [0, 3]]),  # 2 + 4 + 3 | 2 + 1 and 1 + 2
        (10, [[1, 2, 0], [3]]),  # 2 + 4 + 3 + 1 | 1 + 2
        (12, [[1, 2, 0], [3]]),  # the other prompt counts too: 10 + 1 + 2 is 13
        (13, [[1, 2, 0, 3]]),
    ],
)
def test_shared_micro_batches_keep_responses_to_one_prompt_together(budget: int, expected: list[list[int]]) -> None:
    assert split(Shared, of_lengths((2, [1, 4, 3]), (1, [2])), budget) == expected


def test_a_later_pack_of_one_prompt_counts_all_of_its_responses() -> None:
    # A prompt of 2 with responses of 6, 3 and 3: 2 + 6 | 2 + 3 + 3, both full; the other prompt's 1 + 2 fit nowhere.
    assert split(Shared, of_lengths((2, [6, 3, 3]), (1, [2])), 8) == [[0], [1, 2], [3]]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_examples_are_a_batch_with_advantages_of_one() -> None:
    batch = collate_examples([Example(prompt(1, 2), (3,)), Example(prompt(4), (5, 6))])
    assert values(batch) == {
        "tokens": [1, 2, 3, 4, 5, 6],
        "loss_mask": [False, False, True, False, True, True],
        "lengths": [3, 3],
        "prompt_lengths": [2, 1],
        "response_lengths": [1, 2],
        "groups": [0, 1],
        "rewards": [0, 0],
        "truncated": [False, False],
        "sampled_logprobs": [0, 0, 0],
        "advantages": [1, 1, 1],
    }
    assert (len(batch), batch.lengths.tolist()) == (2, [3, 3])


def test_a_batch_goes_to_a_device_with_all_that_it_has() -> None:
    batch = collate_examples([Example(prompt(1, 2), (3,))])
    moved = batch.to(torch.device("meta"))
    assert type(moved) is TrainBatch
    for each in fields(batch):
        before, after = getattr(batch, each.name), getattr(moved, each.name)
        assert after is None if before is None else after.device.type == "meta"


def test_each_stage_adds_to_what_the_one_before_has() -> None:
    scored = BATCH.extend(ScoredBatch, old_logprobs=None, ref_logprobs=torch.zeros(6), values=None)
    trained = scored.extend(TrainBatch, advantages=torch.arange(6.0), returns=None)
    assert trained.tokens is BATCH.tokens and trained.ref_logprobs is scored.ref_logprobs
    part = trained.select(torch.tensor([2, 0]))
    assert part.advantages.tolist() == [3, 4, 5, 0]
    assert part.tokens.tolist() == [1, 2, 10, 11, 12, 1, 2, 13]
    assert part.groups.tolist() == [0, 0]
    assert part.values is None


# --- ragged tensors ---------------------------------------------------------------------------------------------------


def test_ragged_helpers() -> None:
    lengths = torch.tensor([2, 1, 3, 1])
    numbers = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    assert row_of(lengths).tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert place_in_row(lengths).tolist() == [0, 1, 0, 0, 1, 2, 0]
    assert last_index(lengths).tolist() == [1, 2, 5, 6]
    assert row_sum(numbers, lengths).tolist() == [3, 3, 15, 7]
    padded = to_padded(numbers, lengths)
    assert padded.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6], [7, 0, 0]], "padding is 0 unless given"
    assert from_padded(padded, lengths).tolist() == numbers.tolist()
