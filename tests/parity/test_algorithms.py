"""Every setting of every algorithm, against values worked by hand.

For a new algorithm, copy a test below: build it from a recipe, hand it a batch of a few tokens, and work out on paper
what must come back, the gradient of a loss too. `@worked("NAME.SETTING")` says which settings a test covers; the last
test fails for a setting that has none. A value is worked by hand if the test would fail without the setting: choose
numbers at which other values of it give something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from worked import not_worked, worked

from simplerl import plugins
from simplerl.algorithms.base import Algorithm, AlgorithmConfig
from simplerl.batch.batch import ScoredBatch, TrainBatch
from simplerl.config import validate_recipe
from simplerl.errors import ConfigError
from simplerl.losses.losses import GlobalCounts

pytestmark = pytest.mark.parity

LIMIT = 8
"""Response tokens at most (`rollout.max_tokens`)."""

BOTH = pytest.mark.parametrize("name", ["ppo", "grpo"])
LN2 = math.log(2)


def build(name: str, *, samples_per_prompt: int = 8, **settings: Any) -> Algorithm:
    """An algorithm as a run builds it, from a recipe."""
    table = {
        "data": {"source": "arithmetic"},
        "rollout": {"max_tokens": LIMIT, "samples_per_prompt": samples_per_prompt},
        "algorithm": {"name": name, **settings},
    }
    recipe = validate_recipe(table)
    return plugins.load("algorithms", name).build(recipe.algorithm, recipe)


def numbers(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values)


def scored(
    lengths: Sequence[int],
    rewards: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    old: Sequence[float] | None = None,
    ref: Sequence[float] | None = None,
    values: Sequence[float] | None = None,
    sampled: Sequence[float] | None = None,
) -> ScoredBatch:
    """Responses of these lengths to prompts of one token; `old`, `ref`, `values` and `sampled` are by token."""
    count, tokens = len(lengths), sum(lengths)
    return ScoredBatch(
        tokens=torch.zeros(count + tokens, dtype=torch.int64),
        loss_mask=torch.tensor([place > 0 for length in lengths for place in range(1 + length)]),
        lengths=torch.tensor(lengths) + 1,
        prompt_lengths=torch.ones(count, dtype=torch.int64),
        response_lengths=torch.tensor(lengths),
        groups=torch.arange(count) if groups is None else torch.tensor(groups),
        rewards=torch.tensor(rewards),
        truncated=torch.zeros(count, dtype=torch.bool),
        sampled_logprobs=torch.zeros(tokens) if sampled is None else torch.tensor(sampled),
        old_logprobs=numbers(old),
        ref_logprobs=numbers(ref),
        values=numbers(values),
    )


def to_train(
    lengths: Sequence[int], advantages: Sequence[float], returns: Sequence[float] | None = None, **scores: Any
) -> TrainBatch:
    """Such responses with advantages and returns, by token."""
    batch = scored(lengths, [0.0] * len(lengths), **scores)
    return batch.extend(TrainBatch, advantages=torch.tensor(advantages), returns=numbers(returns))


def advantages_of(algorithm: Algorithm, batch: ScoredBatch) -> list[float]:
    return algorithm.compute_advantages(batch)[0].advantages.tolist()


def returns_of(algorithm: Algorithm, batch: ScoredBatch) -> list[float]:
    returns = algorithm.compute_advantages(batch)[0].returns
    assert returns is not None
    return returns.tolist()


class Result:
    """A loss, its statistics, and its gradient with respect to each input."""

    def __init__(self, loss: Tensor, stats: dict[str, Tensor], *inputs: Tensor) -> None:
        # One that holds the graph would hold the activations of every micro-batch.
        assert not [name for name, value in stats.items() if value.requires_grad]
        self.loss = loss.item()
        self.stats = {name: value.item() for name, value in stats.items()}
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        self.gradient, *self.more_gradients = [gradient.tolist() for gradient in gradients]


def policy_loss(
    algorithm: Algorithm,
    micro_batch: TrainBatch,
    logprobs: Sequence[float],
    entropy: Sequence[float] | None = None,
    counts: GlobalCounts | None = None,
) -> Result:
    """The policy loss; the micro-batch is the whole minibatch unless `counts` say otherwise."""
    own = torch.tensor(logprobs).requires_grad_()
    spread = torch.tensor(entropy or [0.0] * len(logprobs)).requires_grad_()
    counts = counts or GlobalCounts(len(micro_batch), len(logprobs))
    return Result(*algorithm.policy_loss(own, spread, micro_batch, counts), own, spread)


def value_loss(
    algorithm: Algorithm, micro_batch: TrainBatch, values: Sequence[float], counts: GlobalCounts | None = None
) -> Result:
    own = torch.tensor(values).requires_grad_()
    return Result(*algorithm.value_loss(own, micro_batch, counts or GlobalCounts(len(micro_batch), len(values))), own)


def logs(*values: float) -> list[float]:
    return [math.log(value) for value in values]


def near(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-6)


# --- the policy loss, of every algorithm ------------------------------------------------------------------------------


@worked("common.clip_low", "common.clip_high")
@BOTH
def test_the_ratio_is_clipped_below_and_above(name: str) -> None:
    algorithm = build(name, clip_low=0.1, clip_high=0.3, aggregation="token-mean")
    # Four tokens of old probability 1/2: the ratio is twice the new one. The loss is the mean of -min(r A, clip(r) A).
    #   r = 1.25, A = 1: within 1.3, loss -1.25, gradient -r A = -1.25
    #   r = 1.5, A = 1: clipped, loss -1.3, no gradient
    #   r = 0.85, A = -1: clipped, r A = -0.85 but clip(r) A = -0.9, loss 0.9, no gradient
    #   r = 0.95, A = -1: within 0.9, loss 0.95, gradient 0.95
    batch = to_train([4], [1.0, 1.0, -1.0, -1.0], old=logs(*[0.5] * 4))
    result = policy_loss(algorithm, batch, logs(0.625, 0.75, 0.425, 0.475))
    assert result.loss == pytest.approx((-1.25 - 1.3 + 0.9 + 0.95) / 4)
    assert result.gradient == near(-1.25 / 4, 0, 0, 0.95 / 4)
    assert result.stats["loss/policy"] == pytest.approx(result.loss)
    # Statistics: two of four are clipped; mean ratio 4.55 / 4; the farthest from 1 is 1.5.
    assert result.stats["ratio/clip_fraction"] == 0.5
    assert result.stats["ratio/mean"] == pytest.approx(1.1375)
    assert result.stats["ratio/max"] == pytest.approx(0.5)
    # The mean of r - 1 - ln r: (0.55 - ln(1.25 x 1.5 x 0.85 x 0.95)) / 4, and ln 1.5140625 = 0.4147965.
    assert result.stats["kl/old"] == pytest.approx((0.55 - 0.4147965) / 4, abs=1e-6)


@BOTH
def test_the_farthest_ratio_may_be_below_one(name: str) -> None:
    result = policy_loss(build(name), to_train([2], [0.0, 0.0], old=[0.0, 0.0]), logs(0.5, 1.25))
    assert result.stats["ratio/max"] == pytest.approx(0.5)


# Responses of 1 and 3 tokens, of a minibatch with 4 responses and 10 tokens.
# sequence-mean: 1 / (l x 4); token-mean: 1 / 10; constant: 1 / (LIMIT x 4) = 1 / 32.
AGGREGATIONS = pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("sequence-mean", [1 / 4, 1 / 12, 1 / 12, 1 / 12]),
        ("token-mean", [1 / 10] * 4),
        ("constant", [1 / 32] * 4),
    ],
)
PART = GlobalCounts(sequences=4, tokens=10)


@worked("common.aggregation")
@AGGREGATIONS
@BOTH
def test_policy_gradient_of_each_aggregation(name: str, aggregation: str, weights: list[float]) -> None:
    # Ratio 1: the loss of a token is -A, and so is its gradient. A = 2.
    batch = to_train([1, 3], [2.0] * 4, old=[-1.0] * 4)
    result = policy_loss(build(name, aggregation=aggregation), batch, [-1.0] * 4, counts=PART)
    assert result.gradient == near(*(-2 * weight for weight in weights))
    assert result.loss == pytest.approx(-2 * sum(weights))


@AGGREGATIONS
def test_critic_gradient_of_each_aggregation(aggregation: str, weights: list[float]) -> None:
    # The loss of a token is (V - R)^2 / 2, its gradient V - R = 0.5 - 1.
    batch = to_train([1, 3], [0.0] * 4, [1.0] * 4, values=[0.5] * 4)
    result = value_loss(build("ppo", aggregation=aggregation), batch, [0.5] * 4, counts=PART)
    assert result.gradient == near(*(-0.5 * weight for weight in weights))
    assert result.loss == pytest.approx(0.125 * sum(weights))
    assert result.stats == {"loss/value": pytest.approx(result.loss)}


def test_default_aggregations() -> None:
    """PPO's is the v0 recipe's, GRPO's the v1 code's."""
    assert build("ppo").config.aggregation == "sequence-mean"
    assert build("grpo").config.aggregation == "token-mean"


@worked("common.kl_loss_coef")
@BOTH
def test_kl_loss_is_weighted_and_added(name: str) -> None:
    # k1 = log pi - log ref = 0.3 at each token. Weights of sequence-mean: 1/2 and 1/6; their sum is 1.
    algorithm = build(name, kl_loss_coef=0.5, kl_loss_estimator="k1", aggregation="sequence-mean")
    batch = to_train([1, 3], [0.0] * 4, old=[-1.0] * 4, ref=[-1.3] * 4)
    result = policy_loss(algorithm, batch, [-1.0] * 4)
    assert result.loss == pytest.approx(0.5 * 0.3)
    assert result.stats["loss/kl"] == pytest.approx(0.3)
    assert result.stats["loss/policy"] == 0
    assert result.gradient == near(0.5 / 2, 0.5 / 6, 0.5 / 6, 0.5 / 6)


@BOTH
def test_no_kl_loss_without_a_coefficient(name: str) -> None:
    result = policy_loss(build(name), to_train([1], [0.0], old=[-1.0], ref=[-1.3]), [-1.0])
    assert (result.loss, result.gradient) == (0, [0])
    assert "loss/kl" not in result.stats


@worked("common.kl_loss_estimator")
@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        # pi = 1/2, ref = 1/4, old = 1/4: d = log pi - log ref = ln 2 and pi / old = 2.
        ("k1", LN2, 1),  # d, gradient 1
        ("k2", LN2**2 / 2, LN2),  # d^2 / 2, gradient d
        ("k3", LN2 - 0.5, 0.5),  # e^-d - 1 + d, gradient 1 - e^-d
        ("k3-unbiased", 2 * LN2 - 1, 2 * LN2),  # 2 k3, gradient 2 k3 + 2 (1 - e^-d)
    ],
)
@BOTH
def test_each_kl_estimator(name: str, estimator: str, value: float, gradient: float) -> None:
    algorithm = build(name, kl_loss_coef=1.0, kl_loss_estimator=estimator)
    batch = to_train([1], [0.0], old=logs(0.25), ref=logs(0.25))
    result = policy_loss(algorithm, batch, logs(0.5))
    assert result.loss == pytest.approx(value)
    assert result.gradient == near(gradient)


@worked("common.entropy_coef")
@BOTH
def test_descending_the_loss_raises_the_entropy(name: str) -> None:
    # Weights of sequence-mean 1/2 and 1/6; entropies 2 and 3, 4, 5: weighted 2/2 + 12/6 = 3, and -0.1 x 3.
    algorithm = build(name, entropy_coef=0.1, aggregation="sequence-mean")
    batch = to_train([1, 3], [0.0] * 4, old=[-1.0] * 4)
    result = policy_loss(algorithm, batch, [-1.0] * 4, [2.0, 3.0, 4.0, 5.0])
    assert result.loss == pytest.approx(-0.3)
    (of_entropy,) = result.more_gradients
    assert of_entropy == near(-0.1 / 2, -0.1 / 6, -0.1 / 6, -0.1 / 6)
    assert result.stats["entropy"] == pytest.approx(14 / 4), "the statistic is a mean over tokens"


@BOTH
def test_no_entropy_bonus_without_a_coefficient(name: str) -> None:
    result = policy_loss(build(name), to_train([1], [0.0], old=[-1.0]), [-1.0], [2.0])
    assert (result.loss, result.more_gradients) == (0, [[0]])


@BOTH
def test_a_step_s_only_update_has_ratio_one_and_measures_the_mismatch_itself(name: str) -> None:
    # No old log-probs. Ratio 1 with the gradient of the ratio: -A / 3 of each token.
    batch = to_train([3], [1.0, -3.0, 5.0], sampled=[-0.8, -1.05, -1.05], ref=[-1.5] * 3)
    result = policy_loss(build(name), batch, [-1.0] * 3)
    assert result.loss == pytest.approx(-1)
    assert result.gradient == near(-1 / 3, 1, -5 / 3)
    # Own minus sampled log-probs are -0.2, 0.05 and 0.05; beyond 0.1 is one of three.
    assert result.stats["mismatch/mean"] == pytest.approx(0.1)
    assert result.stats["mismatch/max"] == pytest.approx(0.2)
    assert result.stats["mismatch/beyond"] == pytest.approx(1 / 3)
    # The mean of e^d - 1 - d: (0.0187308 + 0.0012711 + 0.0012711) / 3.
    assert result.stats["mismatch/kl"] == pytest.approx(0.0070910, abs=1e-6)
    assert result.stats["kl/reference"] == pytest.approx(0.5)


@BOTH
def test_later_updates_leave_the_mismatch_to_the_scoring_pass(name: str) -> None:
    result = policy_loss(build(name), to_train([1], [1.0], old=[-1.0], ref=[-1.5]), [-1.0])
    assert not {"mismatch/mean", "kl/reference"} & set(result.stats)


# --- PPO --------------------------------------------------------------------------------------------------------------

# A response of 3 tokens, reward 1 at its end. delta_t = r_t + gamma V_(t+1) - V_t, and V is 0 after the end.
VALUES = [0.5, 0.4, 0.6]
PLAIN = {"whiten_advantages": False, "kl_coef": 0.0}


@worked("ppo.gamma")
def test_gamma_discounts_by_the_token() -> None:
    # gamma 0.5, lambda 1. delta: 0.2 - 0.5 = -0.3, 0.3 - 0.4 = -0.1, 1 - 0.6 = 0.4.
    # A_2 = 0.4, A_1 = -0.1 + 0.5 x 0.4 = 0.1, A_0 = -0.3 + 0.5 x 0.1 = -0.25. A + V = 0.5^2, 0.5, 1.
    algorithm, batch = build("ppo", gamma=0.5, lam=1.0, **PLAIN), scored([3], [1.0], values=VALUES)
    assert advantages_of(algorithm, batch) == near(-0.25, 0.1, 0.4)
    assert returns_of(algorithm, batch) == near(0.25, 0.5, 1)


@worked("ppo.gamma")
def test_gamma_discounts_the_critic_s_targets_too() -> None:
    algorithm = build("ppo", gamma=0.5, lam=0.0, value_lam=1.0, **PLAIN)
    assert returns_of(algorithm, scored([3], [1.0], values=VALUES)) == near(0.25, 0.5, 1)


@worked("ppo.lam")
def test_lambda_blends_the_deltas() -> None:
    # lambda 0.5. delta: -0.1, 0.2, 0.4. A_2 = 0.4, A_1 = 0.2 + 0.5 x 0.4 = 0.4, A_0 = -0.1 + 0.5 x 0.4 = 0.1.
    algorithm, batch = build("ppo", lam=0.5, **PLAIN), scored([3], [1.0], values=VALUES)
    assert advantages_of(algorithm, batch) == near(0.1, 0.4, 0.4)
    assert returns_of(algorithm, batch) == near(0.6, 0.8, 1), "targets A + V by the same lambda"


@worked("ppo.value_lam")
def test_the_critic_may_have_a_lambda_of_its_own() -> None:
    # The policy's advantages by lambda 0.5 as above; targets by lambda 1 are the reward at every token.
    algorithm, batch = build("ppo", lam=0.5, value_lam=1.0, **PLAIN), scored([3], [1.0], values=VALUES)
    assert advantages_of(algorithm, batch) == near(0.1, 0.4, 0.4)
    assert returns_of(algorithm, batch) == near(1, 1, 1)


@worked("ppo.adaptive_lam_alpha")
def test_adaptive_lambda_depends_on_the_length() -> None:
    # 1 - 1 / (alpha l) with alpha 2/3: 3 tokens have lambda 1/2, 1 token has -1/2, raised to 0.
    # The first response as above; of the second, A = 0 - 0.2.
    algorithm = build("ppo", lam=1.0, adaptive_lam_alpha=2 / 3, **PLAIN)
    batch = scored([3, 1], [1.0, 0.0], values=[*VALUES, 0.2])
    assert advantages_of(algorithm, batch) == near(0.1, 0.4, 0.4, -0.2)
    assert returns_of(algorithm, batch) == near(0.6, 0.8, 1, 0)


def test_adaptive_lambda_is_the_policy_s_alone() -> None:
    algorithm = build("ppo", adaptive_lam_alpha=2 / 3, value_lam=1.0, **PLAIN)
    batch = scored([3], [1.0], values=VALUES)
    assert advantages_of(algorithm, batch) == near(0.1, 0.4, 0.4)
    assert returns_of(algorithm, batch) == near(1, 1, 1)


@worked("ppo.whiten_advantages")
def test_whitening_is_over_all_tokens_and_leaves_the_returns() -> None:
    # Rewards 4 and 0 of responses of 1 and 3 tokens, V = 0, lambda 1: advantages 4, 0, 0, 0.
    # Mean 1, population variance (9 + 1 + 1 + 1) / 4 = 3: (4 - 1) / sqrt 3 = sqrt 3 and -1 / sqrt 3.
    batch = scored([1, 3], [4.0, 0.0], values=[0.0] * 4)
    algorithm = build("ppo", lam=1.0, kl_coef=0.0)
    assert advantages_of(algorithm, batch) == near(3**0.5, *[-(3**-0.5)] * 3)
    assert returns_of(algorithm, batch) == near(4, 0, 0, 0)
    assert advantages_of(build("ppo", lam=1.0, **PLAIN), batch) == near(4, 0, 0, 0)


@worked("ppo.kl_coef")
def test_the_kl_penalty_is_taken_from_every_token_s_reward() -> None:
    # log old - log ref = 0.2, 0.4; times 0.5: rewards -0.1 and 1 - 0.2. V = 0, gamma = lambda = 1: A = 0.7, 0.8.
    batch = scored([2], [1.0], old=[-1.0, -1.0], ref=[-1.2, -1.4], values=[0.0, 0.0])
    algorithm = build("ppo", kl_coef=0.5, lam=1.0, whiten_advantages=False)
    trained, metrics = algorithm.compute_advantages(batch)
    assert trained.advantages.tolist() == near(0.7, 0.8)
    assert metrics["kl/coefficient"] == 0.5


def test_no_kl_penalty_without_a_coefficient_whatever_else_loads_the_reference() -> None:
    batch = scored([2], [1.0], old=[-1.0, -1.0], ref=[-1.2, -1.4], values=[0.0, 0.0])
    trained, metrics = build("ppo", kl_loss_coef=0.1, lam=1.0, **PLAIN).compute_advantages(batch)
    assert trained.advantages.tolist() == near(1, 1)
    assert "kl/coefficient" not in metrics


def kl_batch(kl: float) -> ScoredBatch:
    """Two responses, of 1 and 3 tokens, with this KL at every token."""
    return scored([1, 3], [0.0, 0.0], old=[-1.0] * 4, ref=[-1.0 - kl] * 4, values=[0.0] * 4)


@worked("ppo.kl_target", "ppo.kl_horizon")
@pytest.mark.parametrize(
    ("kl", "after"),
    [
        # x (1 + e n / horizon), e = KL / target - 1 within [-0.2, 0.2]; target 0.1, n = 2 responses, horizon 10.
        (0.11, 1.02),  # e = 0.1
        (0.095, 0.99),  # e = -0.05: below the target the coefficient falls
        (5.0, 1.04),  # e = 49, limited to 0.2
        (-5.0, 0.96),  # e = -51, limited to -0.2
    ],
)
def test_the_kl_coefficient_follows_its_target(kl: float, after: float) -> None:
    algorithm = build("ppo", kl_coef=1.0, kl_target=0.1, kl_horizon=10, lam=1.0, whiten_advantages=False)
    trained, metrics = algorithm.compute_advantages(kl_batch(kl))
    assert metrics["kl/coefficient"] == 1, "this batch still has the coefficient from before"
    assert trained.advantages.tolist() == pytest.approx([-kl, -3 * kl, -2 * kl, -kl], rel=1e-5)
    assert algorithm.state()["kl_coef"] == pytest.approx(after)
    assert algorithm.compute_advantages(kl_batch(kl))[1]["kl/coefficient"] == pytest.approx(after)


def test_the_kl_that_is_observed_is_a_mean_over_tokens() -> None:
    # KL 0.2, 0, 0, 0: 0.05 by token, which is on target. By response it would be 0.1.
    batch = scored([1, 3], [0.0, 0.0], old=[-1.0] * 4, ref=[-1.2, -1, -1, -1], values=[0.0] * 4)
    algorithm = build("ppo", kl_coef=1.0, kl_target=0.05, kl_horizon=10)
    algorithm.compute_advantages(batch)
    assert algorithm.state()["kl_coef"] == pytest.approx(1)


def test_the_kl_coefficient_is_fixed_without_a_target_and_survives_a_checkpoint() -> None:
    algorithm, resumed = (build("ppo", kl_coef=0.3) for _ in range(2))
    algorithm.compute_advantages(kl_batch(5.0))
    assert algorithm.state() == {"kl_coef": 0.3}
    resumed.restore({"kl_coef": 0.7})
    assert resumed.compute_advantages(kl_batch(0.1))[1]["kl/coefficient"] == 0.7


@worked("ppo.value_clip")
@pytest.mark.parametrize(
    ("clip", "loss", "gradient"),
    [
        # Old values 1. The loss is half the larger of (V - R)^2 and, with V clipped to [0.7, 1.3], (V_c - R)^2.
        #   V = 1.5, R = 2: 0.25 and 0.49 (clipped, no gradient)
        #   V = 0.5, R = 0: 0.25 and 0.49 (clipped, no gradient)
        #   V = 0, R = 1.5: 2.25 (gradient V - R) and 0.64
        (0.3, 0.5 * (0.49 + 0.49 + 2.25) / 3, [0, 0, -1.5 / 3]),
        (None, 0.5 * (0.25 + 0.25 + 2.25) / 3, [-0.5 / 3, 0.5 / 3, -1.5 / 3]),
    ],
)
def test_the_critic_s_loss_with_and_without_its_clip(clip: float | None, loss: float, gradient: list[float]) -> None:
    batch = to_train([3], [0.0] * 3, [2.0, 0.0, 1.5], values=[1.0] * 3)
    result = value_loss(build("ppo", value_clip=clip), batch, [1.5, 0.5, 0.0])
    assert result.loss == pytest.approx(loss)
    assert result.gradient == near(*gradient)


def test_what_ppo_reports_of_its_critic() -> None:
    # Rewards 1 and -1 of one token each, V = 0.5 and -0.5: returns 1 and -1; 1 - 0.25 / 1 of their variance.
    _, metrics = build("ppo", **PLAIN).compute_advantages(scored([1, 1], [1.0, -1.0], values=[0.5, -0.5]))
    assert metrics == {"value/explained_variance": 0.75, "value/mean": 0, "return/mean": 0}
    _, metrics = build("ppo", lam=1.0, **PLAIN).compute_advantages(scored([3], [1.0], values=VALUES))
    assert (metrics["value/mean"], metrics["return/mean"]) == (pytest.approx(0.5), pytest.approx(1))


# --- GRPO -------------------------------------------------------------------------------------------------------------


@worked("grpo.scale_by_std")
def test_a_group_s_mean_is_the_baseline() -> None:
    # Groups, interleaved: 0 has rewards 3 and 1, mean 2, sample deviation sqrt 2; 1 has 5 and 5, no signal; 2 has 8 and
    # 0, mean 4, sample deviation 4 sqrt 2. The first response has two tokens.
    batch = scored([2, 1, 1, 1, 1, 1], [3.0, 5.0, 1.0, 5.0, 8.0, 0.0], groups=[0, 1, 0, 1, 2, 2])
    assert advantages_of(build("grpo", scale_by_std=False), batch) == near(1, 1, 0, -1, 0, 4, -4)
    r = 0.5**0.5
    assert advantages_of(build("grpo"), batch) == near(r, r, 0, -r, 0, r, -r)
    trained, metrics = build("grpo").compute_advantages(batch)
    assert trained.returns is None
    assert metrics == {"group/equal_share": pytest.approx(1 / 3)}


@worked("grpo.dynamic_sampling_rounds")
def test_dynamic_sampling_replaces_groups_of_equal_rewards() -> None:
    algorithm = build("grpo", dynamic_sampling_rounds=3)
    assert algorithm.dynamic_sampling_rounds == 3
    assert algorithm.has_learning_signal([0.0, 0.0, 1.0])
    assert not algorithm.has_learning_signal([1.0, 1.0, 1.0])
    assert build("grpo").dynamic_sampling_rounds == build("ppo").dynamic_sampling_rounds == 0
    assert build("ppo").has_learning_signal([1.0, 1.0]), "a critic learns from equal rewards too"


def test_grpo_keeps_no_state_and_has_no_critic() -> None:
    algorithm = build("grpo")
    algorithm.restore({})
    assert algorithm.state() == {}
    with pytest.raises(NotImplementedError):
        value_loss(algorithm, to_train([1], [0.0], [0.0]), [0.0])


def test_a_new_algorithm_starts_without_critic_reference_and_state() -> None:
    """And says so if it lacks a method that every algorithm has."""
    algorithm, batch = Algorithm(), to_train([1], [0.0])
    needs = (algorithm.needs_critic, algorithm.needs_reference, algorithm.needs_old_logprobs)
    assert (needs, algorithm.state()) == ((False, False, False), {})
    with pytest.raises(NotImplementedError):
        algorithm.compute_advantages(batch)
    with pytest.raises(NotImplementedError):
        policy_loss(algorithm, batch, [-1.0])


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "critic", "reference", "old_logprobs"),
    [
        ("ppo", {}, True, True, True),
        ("ppo", {"kl_coef": 0.0}, True, False, False),
        ("ppo", {"kl_coef": 0.0, "kl_loss_coef": 0.1}, True, True, False),
        ("ppo", {"kl_coef": 0.1, "kl_loss_coef": 0.1}, True, True, True),
        ("grpo", {}, False, False, False),
        ("grpo", {"kl_loss_coef": 0.1}, False, True, False),
    ],
)
def test_which_models_are_needed(
    name: str, settings: dict[str, float], critic: bool, reference: bool, old_logprobs: bool
) -> None:
    algorithm = build(name, **settings)
    found = (algorithm.needs_critic, algorithm.needs_reference, algorithm.needs_old_logprobs)
    assert found == (critic, reference, old_logprobs)


COMMON = {
    "clip_low": ([0.01, 0.99], [0.0, 1.0]),
    "clip_high": ([0.01, 5.0], [0.0]),
    "kl_loss_coef": ([0.0, 0.5], [-0.1]),
    "entropy_coef": ([0.0, 0.5], [-0.1]),
}
LIMITS = {
    "ppo": COMMON
    | {
        "gamma": ([0.01, 1.0], [0.0, 1.01]),
        "lam": ([0.0, 1.0], [-0.01, 1.01]),
        "value_lam": ([0.0, 1.0], [-0.01, 1.01]),
        "adaptive_lam_alpha": ([0.01, 9.0], [0.0]),
        "value_clip": ([0.01, 9.0], [0.0]),
        "kl_coef": ([0.0, 9.0], [-0.01]),
        "kl_target": ([0.01, 9.0], [0.0]),
        "kl_horizon": ([1, 10**9], [0]),
    },
    "grpo": COMMON | {"dynamic_sampling_rounds": ([0, 99], [-1])},
}


@pytest.mark.parametrize("name", LIMITS)
def test_settings_within_their_limits_are_taken_and_others_refused(name: str) -> None:
    for setting, (allowed, refused) in LIMITS[name].items():
        for value in allowed:
            assert getattr(build(name, **{setting: value}).config, setting) == value
        for value in refused:
            with pytest.raises(ConfigError, match=rf"^algorithm\.{setting}="):
                build(name, **{setting: value})


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"samples_per_prompt=1 leaves none to compare with"):
        build("grpo", samples_per_prompt=1)
    build("grpo", samples_per_prompt=2)
    build("ppo", samples_per_prompt=1)
    with pytest.raises(ConfigError, match=r"algorithm\.kl_target needs a start: algorithm\.kl_coef=0 cannot adapt"):
        build("ppo", kl_target=0.1, kl_coef=0.0)
    build("ppo", kl_target=0.1, kl_coef=1.0)


def test_defaults_are_the_documented_ones() -> None:
    common = {"path": None, "clip_low": 0.2, "clip_high": 0.2, "kl_loss_coef": 0, "entropy_coef": 0}
    common["kl_loss_estimator"] = "k3-unbiased"
    grpo = {"aggregation": "token-mean", "scale_by_std": True, "dynamic_sampling_rounds": 0}
    ppo = {"aggregation": "sequence-mean", "gamma": 1, "lam": 0.95, "value_lam": None, "adaptive_lam_alpha": None}
    ppo |= {"value_clip": 0.2, "kl_coef": 0.01, "kl_target": None, "kl_horizon": 10_000, "whiten_advantages": True}
    assert build("grpo").config.model_dump() == common | grpo | {"name": "grpo"}
    assert build("ppo").config.model_dump() == common | ppo | {"name": "ppo"}


@pytest.mark.parametrize("name", plugins.available("algorithms"))
def test_every_setting_has_a_value_worked_by_hand(name: str) -> None:
    missing = not_worked(name, plugins.load("algorithms", name).Config, common=AlgorithmConfig)
    assert not missing, f"add a test to this file, marked @worked, for {sorted(missing)}"
