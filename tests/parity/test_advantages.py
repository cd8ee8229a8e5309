"""GAE, whitening and group baselines against hand-worked values and an O(n^2) reference."""

import pytest
import torch

from simplerl.losses.advantages import adaptive_lambda, explained_variance, gae, group_advantages, token_rewards, whiten


def gae_by_definition(rewards, values, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}, term by term, for one sequence."""
    size = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < size else 0.0) - values[t] for t in range(size)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(size - t)) for t in range(size)]


def test_gae_matches_values_worked_by_hand():
    # One response of 3 tokens, reward 1 at its end, V = 0.5, 0.4, 0.6, gamma 1, lambda 0.5.
    # delta = -0.1, 0.2, 0.4; A_2 = 0.4, A_1 = 0.2 + 0.2 = 0.4, A_0 = -0.1 + 0.2 = 0.1.
    advantages = gae(
        torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.6]), torch.tensor([3]), gamma=1.0, lam=0.5
    )
    assert advantages.tolist() == pytest.approx([0.1, 0.4, 0.4])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_its_definition_for_ragged_sequences(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([5, 1, 9, 3])
    rewards, values = torch.randn(18, generator=generator), torch.randn(18, generator=generator)

    result = gae(rewards, values, lengths, gamma=gamma, lam=lam).split(lengths.tolist())

    for own, r, v in zip(result, rewards.split(lengths.tolist()), values.split(lengths.tolist()), strict=True):
        assert own.tolist() == pytest.approx(gae_by_definition(r.tolist(), v.tolist(), gamma, lam), abs=1e-5)


def test_gae_of_a_sequence_does_not_depend_on_its_neighbours():
    """verl PR 50, ROLL PR 447: values in the padding must not bootstrap real tokens."""
    rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.2])
    alone = gae(rewards, values, torch.tensor([2]), gamma=1.0, lam=0.9)
    beside = gae(
        torch.cat([rewards, torch.randn(40)]),
        torch.cat([values, torch.randn(40) * 100]),
        torch.tensor([2, 40]),
        gamma=1.0,
        lam=0.9,
    )
    assert torch.equal(alone, beside[:2])


def test_with_gamma_and_lambda_one_the_return_is_the_reward_at_every_token():
    lengths, values = torch.tensor([4, 2]), torch.randn(6)
    rewards = token_rewards(torch.tensor([1.0, -0.5]), lengths)
    returns = gae(rewards, values, lengths, gamma=1.0, lam=1.0) + values
    assert returns.tolist() == pytest.approx([1, 1, 1, 1, -0.5, -0.5], abs=1e-5)


def test_lambda_may_differ_by_sequence():
    lengths, values = torch.tensor([3, 3]), torch.tensor([0.5, 0.4, 0.6] * 2)
    rewards = torch.tensor([0.0, 0.0, 1.0] * 2)
    both = gae(rewards, values, lengths, gamma=1.0, lam=torch.tensor([0.5, 0.0]))
    assert both.tolist() == pytest.approx([0.1, 0.4, 0.4, -0.1, 0.2, 0.4])


def test_adaptive_lambda_worked_by_hand():
    # 1 - 1 / (0.05 l): l = 100 gives 0.8, l = 1000 gives 0.98, l = 10 would be negative.
    assert adaptive_lambda(torch.tensor([100, 1000, 10]), 0.05).tolist() == pytest.approx([0.8, 0.98, 0.0])


def test_the_reward_is_on_the_last_response_token_and_the_penalty_on_every_one():
    """trl PR 5338, miles PR 1827."""
    rewards = token_rewards(torch.tensor([1.0, -0.5]), torch.tensor([2, 1]), torch.tensor([0.1, 0.2, 0.3]))
    assert rewards.tolist() == pytest.approx([-0.1, 0.8, -0.8])


def test_whitening_worked_by_hand_and_of_equal_values():
    assert whiten(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1])
    assert whiten(torch.full((7,), 0.7)).tolist() == [0] * 7
    assert whiten(torch.tensor([])).tolist() == []
    # A deviation of 1e-9 is not blown up to 1, nor turned around: 1e-9 / (1e-9 + 1e-8).
    assert whiten(torch.tensor([0.0, 2e-9])).tolist() == pytest.approx([-1 / 11, 1 / 11])


def test_group_advantages_worked_by_hand():
    # Group 0: 1, 0 -> mean 0.5, sample deviation sqrt(0.5). Group 1: equal. Group 2: alone.
    rewards, groups = torch.tensor([1.0, 0.7, 0.0, 0.7, 0.3]), torch.tensor([0, 1, 0, 1, 2])
    expected = 0.5 / (0.5**0.5 + 1e-6)
    assert group_advantages(rewards, groups).tolist() == pytest.approx([expected, 0, -expected, 0, 0])
    assert group_advantages(rewards, groups, scale_by_std=False).tolist() == pytest.approx([0.5, 0, -0.5, 0, 0])


@pytest.mark.parametrize("size", range(1, 40))
def test_equal_rewards_give_advantages_of_exactly_zero(size):
    rewards, groups = torch.full((size,), 0.7), torch.zeros(size, dtype=torch.int64)
    assert group_advantages(rewards, groups).tolist() == [0.0] * size


def test_explained_variance_worked_by_hand():
    # The returns' variance is 4, what is left of it 1: 1 - 1 / 4.
    returns = torch.tensor([2.0, -2.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.zeros(2), returns) == 0
    assert explained_variance(torch.tensor([1.0, -1.0]), returns) == pytest.approx(0.75)
    assert type(explained_variance(returns, returns)) is float
    assert explained_variance(torch.zeros(2), torch.ones(2)) == 0
