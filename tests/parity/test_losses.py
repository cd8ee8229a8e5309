"""Losses against values worked by hand, gradients too, and the invariances a loss must have."""

import math
from itertools import pairwise

import pytest
import torch

from simplerl.losses.importance import importance_weights, policy_ratio
from simplerl.losses.losses import (
    GlobalCounts,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    kl_estimate,
    log_likelihood_loss,
    token_weights,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.2}
LENGTHS = torch.tensor([1, 3, 2, 4])


def uniform(count):
    return torch.full((count,), 1 / count)


def test_clipped_surrogate_matches_values_worked_by_hand():
    # Ratios 1.5 (clipped to 1.2), 0.5 (clipped to 0.8), 1.0.
    logprobs = torch.tensor([1.5, 0.5, 1.0]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 2.0])

    loss = clipped_surrogate(logprobs, torch.zeros(3), advantages, uniform(3), **CLIP)
    loss.backward()

    assert loss.item() == pytest.approx((-1.2 + 0.8 - 2.0) / 3, abs=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([0, 0, -2 / 3], abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("truncated", [0.25, 0.75, 1.5, 2.0]), ("masked", [0.0, 0.75, 1.5, 0.0]), ("none", [1.0, 1.0, 1.0, 1.0])],
)
def test_importance_weights_of_ratios_within_and_beyond_the_limit(mode, expected):
    ratios = torch.tensor([0.25, 0.75, 1.5, 4.0])
    weights = importance_weights(ratios.log(), torch.zeros(4), mode, limit=2.0)
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)


def test_masked_importance_keeps_ratios_at_its_edges():
    # Both are exact in float32: exp(log 2) = 2.
    assert importance_weights(torch.tensor([0.5, 2.0]).log(), torch.zeros(2), "masked", 2.0).tolist() == [0.5, 2.0]


def test_a_token_impossible_under_both_policies_has_weight_one():
    never = torch.tensor([-math.inf])
    assert importance_weights(never, never, "truncated", 2.0).tolist() == [1.0]


def test_weighted_advantages_weigh_the_clipped_loss():
    """Whether weights are put on the advantages or on the loss of each token."""
    logprobs, weights = torch.tensor([1.5, 0.5, 1.0]).log(), torch.tensor([0.3, 2.0, 1.2])
    advantages = torch.tensor([1.0, -1.0, 2.0])
    inside = clipped_surrogate(logprobs, torch.zeros(3), weights * advantages, uniform(3), **CLIP)
    outside = clipped_surrogate(logprobs, torch.zeros(3), advantages, weights * uniform(3), **CLIP)
    assert inside.item() == pytest.approx(outside.item(), abs=1e-7)


def test_the_clip_leaves_the_gradient_where_the_ratio_is_on_the_bad_side():
    # Ratio 1.5 with a negative advantage and 0.5 with a positive one: both are pulled back, neither is clipped.
    logprobs = torch.tensor([1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([-1.0, 1.0])

    loss = clipped_surrogate(logprobs, torch.zeros(2), advantages, uniform(2), **CLIP)
    loss.backward()

    assert loss.item() == pytest.approx((1.5 - 0.5) / 2, abs=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([1.5 / 2, -0.5 / 2], abs=1e-6)
    assert clip_fraction(logprobs, torch.zeros(2), advantages, **CLIP).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [
        # Bounds 0.5 and 2, both exact in float32. A token is clipped beyond them, in the direction it is pushed.
        (4.0, 0.5, 1),
        (4.0, 0.0, 0),
        (4.0, -0.5, 0),
        (2.0, 0.5, 0),
        (0.25, -0.5, 1),
        (0.25, 0.0, 0),
        (0.25, 0.5, 0),
        (0.5, -0.5, 0),
    ],
)
def test_what_counts_as_clipped(ratio, advantage, clipped):
    logprobs = torch.tensor([ratio]).log()
    found = clip_fraction(logprobs, torch.zeros(1), torch.tensor([advantage]), clip_low=0.5, clip_high=1.0)
    assert (found.tolist(), found.dtype) == ([clipped], torch.float32)


def test_clip_higher_moves_the_upper_bound_alone():
    logprobs = torch.tensor([1.25, 0.75]).log()
    advantages = torch.tensor([1.0, -1.0])

    loss = clipped_surrogate(logprobs, torch.zeros(2), advantages, uniform(2), clip_low=0.2, clip_high=0.28)

    assert loss.item() == pytest.approx((-1.25 + 0.8) / 2, abs=1e-6)


def test_a_token_impossible_under_both_policies_has_ratio_one_and_a_finite_gradient():
    logprobs = torch.tensor([-math.inf, -1.0], requires_grad=True)
    ratio = policy_ratio(logprobs, torch.tensor([-math.inf, -1.0]))
    ratio.sum().backward()

    assert ratio.tolist() == [1, 1]
    assert logprobs.grad.tolist() == [0, 1]


def test_a_token_impossible_under_one_policy_alone_has_ratio_zero_or_infinity():
    never, likely = torch.tensor([-math.inf]), torch.tensor([-1.0])
    assert policy_ratio(never, likely).tolist() == [0]
    assert policy_ratio(likely, never).tolist() == [math.inf]


def test_value_loss_matches_values_worked_by_hand():
    # Old 0, clip 0.2. V=0.5 R=1: max(0.25, (0.2-1)^2=0.64) clipped, no gradient. V=-1 R=0.5: max(2.25, 0.49) unclipped.
    values = torch.tensor([0.5, -1.0], requires_grad=True)
    returns = torch.tensor([1.0, 0.5])

    loss = clipped_value_loss(values, torch.zeros(2), returns, uniform(2), clip=0.2)
    loss.backward()

    assert loss.item() == pytest.approx(0.5 * (0.64 + 2.25) / 2, abs=1e-6)
    assert values.grad.tolist() == pytest.approx([0, -1.5 / 2], abs=1e-6)


def test_value_loss_without_a_clip_is_half_the_squared_error():
    values = torch.tensor([0.5, -1.0])
    loss = clipped_value_loss(values, torch.zeros(2), torch.tensor([1.0, 0.5]), uniform(2), clip=None)
    assert loss.item() == pytest.approx(0.5 * (0.25 + 2.25) / 2)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence-mean", [1 / 2, 1 / 6, 1 / 6, 1 / 6]),  # 1 / (l_i N), N = 2, l = 1, 3
        ("token-mean", [1 / 4] * 4),
        ("constant", [1 / 20] * 4),  # 1 / (10 x 2)
    ],
)
def test_the_three_aggregations_are_three_different_losses(aggregation, expected):
    weights = token_weights(torch.tensor([1, 3]), aggregation, GlobalCounts(2, 4), constant=10)
    assert weights.tolist() == pytest.approx(expected)


def test_the_constant_is_one_unless_given():
    assert token_weights(torch.tensor([1, 3]), "constant", GlobalCounts(2, 4)).tolist() == [1 / 2] * 4


@pytest.mark.parametrize("aggregation", ["sequence-mean", "token-mean", "constant"])
@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2), (1, 1, 1, 1)])
def test_losses_do_not_depend_on_the_micro_batch_split(aggregation, sizes):
    """verl PR 6957, SkyRL PR 1296: a mean per micro-batch weighs short micro-batches more."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = (torch.randn(10, generator=generator) * 0.3 for _ in range(3))
    counts = GlobalCounts(4, 10)

    def loss(start, stop):
        tokens = slice(int(LENGTHS[:start].sum()), int(LENGTHS[:stop].sum()))
        weights = token_weights(LENGTHS[start:stop], aggregation, counts, constant=8)
        policy = clipped_surrogate(logprobs[tokens], old[tokens], advantages[tokens], weights, **CLIP)
        return policy + clipped_value_loss(logprobs[tokens], old[tokens], advantages[tokens], weights, clip=0.2)

    cu_seqlens = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = sum(loss(a, b) for a, b in pairwise(cu_seqlens))

    assert parts.item() == pytest.approx(loss(0, 4).item(), abs=1e-6)


def test_log_likelihood_loss_matches_values_worked_by_hand():
    # Responses of 1 and 2 tokens with probabilities 1/2 and 1/4, 1/8: token mean (1 + 2 + 3) ln 2 / 3 = 2 ln 2.
    logprobs = torch.tensor([0.5, 0.25, 0.125]).log().requires_grad_()
    weights = token_weights(torch.tensor([1, 2]), "token-mean", GlobalCounts(2, 3))

    loss = log_likelihood_loss(logprobs, torch.ones(3), weights)
    loss.backward()

    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert logprobs.grad.tolist() == pytest.approx([-1 / 3] * 3)


def test_log_likelihood_loss_is_weighted_by_the_advantages():
    # -(1/4 x 2 x -1 + 3/4 x -1 x -2) = 1/2 - 3/2, gradient -w A.
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = log_likelihood_loss(logprobs, torch.tensor([2.0, -1.0]), torch.tensor([0.25, 0.75]))
    loss.backward()
    assert loss.item() == -1
    assert logprobs.grad.tolist() == [-0.5, 0.75]


def test_log_likelihood_loss_is_the_policy_gradient_at_a_ratio_of_one():
    logprobs = torch.tensor([-0.3, -2.0, -0.7], requires_grad=True)
    log_likelihood_loss(logprobs, torch.ones(3), uniform(3)).backward()
    likelihood = logprobs.grad.clone()
    logprobs.grad = None
    clipped_surrogate(logprobs, logprobs.detach(), torch.ones(3), uniform(3), **CLIP).backward()
    assert torch.equal(logprobs.grad, likelihood)


def test_kl_estimators_match_values_worked_by_hand():
    # d = log pi - log ref = ln 2 and -ln 2; k3 = e^-d - 1 + d.
    logprobs, ref = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    ln2 = math.log(2)

    def estimate(name, old=logprobs):
        return kl_estimate(logprobs, ref, name, old).tolist()

    assert estimate("k1") == pytest.approx([ln2, -ln2])
    assert estimate("k2") == pytest.approx([ln2**2 / 2] * 2)
    assert estimate("k3") == pytest.approx([0.5 - 1 + ln2, 2 - 1 - ln2])
    # pi / pi_old = 2 for both tokens.
    assert estimate("k3-unbiased", old=logprobs - ln2) == pytest.approx([2 * (0.5 - 1 + ln2), 2 * (1 - ln2)])


def exact_kl_gradient(logits, ref):
    policy = torch.log_softmax(logits, -1)
    (policy.exp() * (policy - ref)).sum().backward()
    return logits.grad.clone()


@pytest.mark.parametrize(("estimator", "right"), [("k1", False), ("k2", True), ("k3", False), ("k3-unbiased", True)])
def test_which_kl_losses_have_the_gradient_of_the_kl(estimator, right):
    """OpenRLHF PR 1309: the expected gradient on policy, summed over the whole vocabulary instead of sampled."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1], requires_grad=True)
    ref = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0, 0.5]), -1)
    wanted = exact_kl_gradient(logits, ref)
    logits.grad = None

    logprobs = torch.log_softmax(logits, -1)
    estimates = kl_estimate(logprobs, ref, estimator, logprobs.detach())
    (logprobs.detach().exp() * estimates).sum().backward()

    assert torch.allclose(logits.grad, wanted, atol=1e-6) is right
    if estimator == "k1":
        assert logits.grad.abs().max() < 1e-6  # k1's gradient vanishes in expectation


def test_k3_unbiased_estimates_the_kl_of_the_new_policy_from_old_samples():
    old, new, ref = (
        torch.log_softmax(torch.tensor(x), -1) for x in ([0.0, 1.0, 2.0], [1.0, 0.5, 0.0], [0.2, 0.1, 0.9])
    )
    expected = (new.exp() * (new - ref)).sum()
    estimate = (old.exp() * kl_estimate(new, ref, "k3-unbiased", old)).sum()
    assert estimate.item() == pytest.approx(expected.item(), abs=1e-6)
