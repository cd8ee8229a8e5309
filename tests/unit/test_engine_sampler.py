"""The sampler draws from the distribution it reports, and from nothing else."""

import math

import numpy as np
import pytest
import torch

from simplerl.engines._sampler import SamplingTensors, draw_tokens

# Probabilities 0.5, 0.25, 0, 0.125, 0.125: exact in float32, so the edges of the inverse are exact too.
LOGITS = torch.tensor([math.log(0.5), math.log(0.25), -torch.inf, math.log(0.125), math.log(0.125)])


def settings(rows, temperature=1.0, top_k=0, top_p=1.0, greedy=False):
    return SamplingTensors(
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.long),
        torch.full((rows,), top_p),
        torch.full((rows,), greedy),
    )


def draw_many(logits, uniforms, **how):
    rows = len(uniforms)
    return draw_tokens(logits.expand(rows, -1), torch.as_tensor(uniforms, dtype=torch.float32), settings(rows, **how))


def test_inverse_of_the_cumulative_distribution_by_hand():
    tokens, logprobs = draw_many(LOGITS, [0.0, 0.49, 0.5, 0.74, 0.75, 0.87, 0.875, 1 - 2**-24])
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, *[0.125] * 4], abs=1e-6)


def test_top_k_then_top_p_by_hand():
    # top-k 2 leaves 2/3 and 1/3; of these top-p 0.6 keeps the first alone.
    tokens, logprobs = draw_many(LOGITS, [0.0, 0.66, 0.67, 0.99], top_k=2)
    assert tokens.tolist() == [0, 0, 1, 1]
    assert logprobs.exp().tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3], abs=1e-6)
    tokens, logprobs = draw_many(LOGITS, [0.0, 0.99], top_k=2, top_p=0.6)
    assert tokens.tolist() == [0, 0] and logprobs.tolist() == [0.0, 0.0]
    # Before top-k, 0.6 needs two tokens.
    assert draw_many(LOGITS, [0.0, 0.99], top_p=0.6)[0].tolist() == [0, 1]


def test_top_p_of_one_keeps_the_faintest_token():
    logits = torch.tensor([0.0, -16.0])
    tokens, logprobs = draw_many(logits, [1 - 2**-24], top_p=1.0)
    assert tokens.tolist() == [1] and logprobs.item() == pytest.approx(-16.0, abs=1e-5)


def test_equal_probabilities_are_cut_at_the_smaller_token_id():
    assert set(draw_many(torch.zeros(4), np.linspace(0, 0.999, 50), top_k=2)[0].tolist()) == {0, 1}


def test_temperature_divides_the_logits():
    logits = torch.tensor([1.0, 2.0, 4.0])
    _, logprobs = draw_many(logits, [0.0, 0.999], temperature=0.5)
    expected = torch.log_softmax(logits * 2, -1)
    assert logprobs.tolist() == pytest.approx(expected[[0, 2]].tolist(), abs=1e-6)


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    tokens, logprobs = draw_many(LOGITS, [0.0, 0.9], greedy=True)
    assert tokens.tolist() == [0, 0]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_rows_do_not_depend_on_how_their_neighbours_sample():
    torch.manual_seed(0)
    logits, uniforms = torch.randn(4, 50) * 3, torch.rand(4)
    mixed = SamplingTensors(
        torch.tensor([1.0, 0.7, 1.0, 1.0]),
        torch.tensor([0, 0, 5, 0]),
        torch.tensor([1.0, 1.0, 1.0, 0.5]),
        torch.tensor([False, False, False, False]),
    )
    tokens, logprobs = draw_tokens(logits, uniforms, mixed)
    for row in range(4):
        alone = SamplingTensors(*(field[row : row + 1] for field in mixed))
        token, logprob = draw_tokens(
            logits[row : row + 1], uniforms[row : row + 1], alone, filtered=row >= 2, greedy=bool(row % 2)
        )
        assert token.item() == tokens[row].item()
        assert logprob.item() == pytest.approx(logprobs[row].item(), abs=1e-6)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_k": 7}, {"top_k": 9, "top_p": 0.7}])
def test_frequencies_match_the_reported_probabilities(how):
    """Chi-square over 200,000 fixed draws; the limit is the 99.9 % quantile of the largest table."""
    torch.manual_seed(1)
    logits = torch.randn(20) * 1.5
    uniforms = np.random.Generator(np.random.Philox(key=5)).random(200_000, dtype=np.float32)
    tokens, logprobs = draw_many(logits, uniforms, **how)
    observed = torch.bincount(tokens, minlength=20).double()
    expected = torch.zeros(20, dtype=torch.double)
    expected[tokens] = logprobs.double().exp() * len(uniforms)
    assert expected.sum().item() == pytest.approx(len(uniforms), rel=1e-5)
    seen = expected > 0
    assert ((observed - expected)[seen] ** 2 / expected[seen]).sum().item() < 43.8


def test_a_token_of_probability_zero_is_never_drawn():
    """At every edge of the cumulative distribution, and at 0 and the largest uniform."""
    torch.manual_seed(2)
    logits = torch.randn(300) * 4
    logits[torch.rand(300) < 0.6] = -torch.inf
    logits[0] = logits[-1] = -torch.inf
    edges = torch.softmax(logits, -1).cumsum(-1)
    uniforms = torch.cat([torch.zeros(1), edges[edges < 1], torch.rand(5000), torch.tensor([1 - 2**-24])])
    for how in ({}, {"top_k": 20}, {"top_p": 0.9}):
        tokens, logprobs = draw_many(logits, uniforms, **how)
        assert torch.isfinite(logits[tokens]).all() and torch.isfinite(logprobs).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite_give_a_log_prob_that_is_not(value, greedy):
    _, logprobs = draw_many(torch.tensor([0.0, value, 1.0]), [0.3, 0.9], greedy=greedy)
    assert not torch.isfinite(logprobs).any()
