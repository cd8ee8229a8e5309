"""The ragged batch: selection, padding, micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simplerl.batch.batch import collate, collate_examples, from_padded, ragged_index, row_sum, to_padded
from simplerl.batch.layouts import Padded
from simplerl.types import Example, GradedRollout, Problem, Prompt, Rollout, Verdict


def graded(prompt_ids, token_ids, reward=1.0, finish="stop"):
    prompt = Prompt(Problem("p", "q", "1"), "q", tuple(prompt_ids))
    logprobs = tuple(-0.1 * t for t in token_ids)
    rollout = Rollout.single_turn("r", prompt, tuple(token_ids), logprobs, "", finish, 0)
    return GradedRollout(rollout, Verdict("correct"), reward)


BATCH = collate([[graded([1, 2], [10, 11, 12]), graded([1, 2], [13], -0.5, "length")], [graded([3], [14, 15])]])


def test_collate_keeps_prompts_and_responses_flat():
    assert BATCH.tokens.tolist() == [1, 2, 10, 11, 12, 1, 2, 13, 3, 14, 15]
    assert BATCH.prompt_lengths.tolist() == [2, 2, 1]
    assert BATCH.response_lengths.tolist() == [3, 1, 2]
    assert BATCH.groups.tolist() == [0, 0, 1]
    assert BATCH.rewards.tolist() == [1.0, -0.5, 1.0]
    assert BATCH.truncated.tolist() == [False, True, False]
    assert BATCH.sampled_logprobs.tolist() == pytest.approx([-1, -1.1, -1.2, -1.3, -1.4, -1.5])


def test_select_takes_whole_rows_in_the_order_given():
    part = BATCH.select(torch.tensor([2, 0]))
    assert part.tokens.tolist() == [3, 14, 15, 1, 2, 10, 11, 12]
    assert part.rewards.tolist() == [1.0, 1.0]
    assert part.sampled_logprobs.tolist() == pytest.approx([-1.4, -1.5, -1, -1.1, -1.2])


def test_response_tokens_are_predicted_from_the_position_before():
    """verl 1758: off by one, a critic's mask or a policy's, trains on the wrong token."""
    padded = Padded.lay_out(BATCH)
    assert padded.ids.tolist() == [[1, 2, 10, 11, 12], [1, 2, 13, 0, 0], [3, 14, 15, 0, 0]]
    assert padded.logit_positions.tolist() == [1, 2, 3, 6, 10, 11]
    assert padded.targets.tolist() == [10, 11, 12, 13, 14, 15]
    assert padded.ids.flatten()[padded.logit_positions].tolist() == [2, 10, 11, 2, 3, 14]


def test_padding_there_and_back():
    values, lengths = torch.arange(6.0), torch.tensor([3, 1, 2])
    assert to_padded(values, lengths, fill=-1).tolist() == [[0, 1, 2], [3, -1, -1], [4, 5, -1]]
    assert from_padded(to_padded(values, lengths), lengths).tolist() == values.tolist()
    assert row_sum(values, lengths).tolist() == [3, 3, 9]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_keep_the_budget(lengths, budget):
    prompt = Prompt(Problem("p", "q", "1"), "q", (1,))
    batch = collate_examples([Example(prompt, (2,) * length) for length in lengths])
    lengths = batch.lengths.tolist()
    groups = Padded.split(batch, budget)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group.tolist())
        assert len(group) == 1 or len(group) * longest <= budget


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.randoms())
def test_ragged_index_names_the_elements_of_rows(lengths, random):
    rows = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    flat = torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)])
    index = ragged_index(torch.tensor(lengths), torch.tensor(rows))
    assert flat[index].tolist() == [row for row in rows for _ in range(lengths[row])]
