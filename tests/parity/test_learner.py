"""The learner's numbers must not depend on padding, micro-batches or neighbours, and a bad update must not land."""

from dataclasses import replace

import pytest
import torch
from learner_cases import make_batch

from simplerl.algorithms.ppo import PPO, Config
from simplerl.config import validate_recipe
from simplerl.errors import NonFiniteError
from simplerl.learner.learner import LocalLearner
from simplerl.losses.logprobs import token_logprobs

CPU = torch.device("cpu")


def make_recipe(tiny_model, **overrides):
    return validate_recipe(
        {
            "model": {"path": str(tiny_model)},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 4, "samples_per_prompt": 3, "temperature": 0.7, "max_tokens": 24},
            "algorithm": {"name": "ppo", "kl_coef": 0.05, "kl_loss_coef": 0.1, "entropy_coef": 0.01},
            "train": {"minibatch_size": 6, "micro_batch_tokens": overrides.pop("budget", 64)},
            "actor": {"learning_rate": 1e-3, **overrides.pop("actor", {})},
            "critic": {"learning_rate": 1e-3},
        }
    )


def make(recipe):
    algorithm = PPO(Config.model_validate(recipe.algorithm.model_dump()), recipe.rollout.max_tokens)
    torch.manual_seed(0)
    learner = LocalLearner(recipe, algorithm, horizon=10, device=CPU)
    # A zero head would make every value 0 and hide mistakes.
    torch.nn.init.normal_(learner.critic.head.weight, std=0.5)
    return learner, algorithm


@pytest.fixture
def learner_and_algorithm(tiny_model):
    return make(make_recipe(tiny_model))


def reference_logprobs(learner, batch):
    """One sequence at a time, whole logits, nothing padded."""
    result, start = [], 0
    for prompt, response in zip(batch.prompt_lengths.tolist(), batch.response_lengths.tolist(), strict=True):
        ids = batch.tokens[start : start + prompt + response]
        logits = learner.actor.causal_lm(ids[None]).logits[0, prompt - 1 : -1].float() / learner.temperature
        result.append(torch.log_softmax(logits, -1).gather(-1, ids[prompt:, None])[:, 0])
        start += prompt + response
    return torch.cat(result)


def test_log_probs_equal_whole_logits_of_lone_sequences_at_the_sampling_temperature(learner_and_algorithm):
    """slime PR 1809 (positions under padding), slime PR 557 (temperature)."""
    learner, _ = learner_and_algorithm
    batch = make_batch()
    with torch.no_grad():
        expected = reference_logprobs(learner, batch)
    assert torch.allclose(learner.score(batch).old_logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_scores_do_not_depend_on_the_micro_batch_budget(tiny_model, budget):
    batch = make_batch()
    learner, _ = make(make_recipe(tiny_model, budget=budget))
    plain, _ = make(make_recipe(tiny_model, budget=64))
    a, b = learner.score(batch), plain.score(batch)
    assert torch.allclose(a.old_logprobs, b.old_logprobs, atol=1e-5)
    assert torch.allclose(a.values, b.values, atol=1e-5)
    assert a.values.std() > 0.01


def gradients(learner, algorithm, batch):
    """Gradients of one update, caught before the optimiser uses them."""
    caught = {}
    for name, optimiser in learner.optimizers.items():
        optimiser.clip_gradients = lambda name=name, o=optimiser: (
            caught.update({f"{name}/{k}": p.grad.clone() for k, p in o.model.named_parameters()}),
            torch.tensor(1.0),
        )[1]
        optimiser.step = lambda: None
    credited, _ = algorithm.compute_advantages(learner.score(batch))
    shifted = replace(
        credited, old_logprobs=credited.old_logprobs + 0.1 * torch.sin(torch.arange(len(credited.old_logprobs)))
    )
    return learner.update(shifted, algorithm), caught


@pytest.mark.parametrize("aggregation", ["sequence-mean", "token-mean", "constant"])
@pytest.mark.parametrize("budget", [1, 50])
def test_losses_and_gradients_do_not_depend_on_the_micro_batch_budget(tiny_model, budget, aggregation):
    """trl 3021, unsloth 3006: accumulation that rescales."""
    batch, results = make_batch(), []
    for size in (budget, 10_000):
        learner, algorithm = make(make_recipe(tiny_model, budget=size))
        algorithm.config = algorithm.config.model_copy(update={"aggregation": aggregation})
        results.append(gradients(learner, algorithm, batch))
    (metrics, parts), (expected_metrics, whole) = results
    assert metrics == pytest.approx(expected_metrics, abs=2e-5)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, atol=1e-5), name
    assert max(g.abs().max() for g in whole.values()) > 1e-3


def test_on_the_first_minibatch_every_ratio_is_one(learner_and_algorithm):
    """verl 6280."""
    learner, algorithm = learner_and_algorithm
    credited, _ = algorithm.compute_advantages(learner.score(make_batch()))
    metrics = learner.update(credited.select(torch.tensor([7, 0, 3])), algorithm)
    assert metrics["ratio/max"] < 1e-5
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["ratio/clip_fraction"] == 0


def test_with_a_vanishing_learning_rate_ratios_stay_one_and_the_kl_zero(tiny_model):
    """open-instruct 1473: drift that rises with lr = 0."""
    learner, algorithm = make(make_recipe(tiny_model, actor={"learning_rate": 1e-30}))
    for seed in range(5):
        scored = learner.score(make_batch(seed))
        assert torch.equal(scored.old_logprobs, scored.ref_logprobs)
        credited, _ = algorithm.compute_advantages(scored)
        assert learner.update(credited, algorithm)["ratio/max"] < 1e-5


def test_the_reference_stays_when_the_actor_moves(learner_and_algorithm):
    learner, algorithm = learner_and_algorithm
    batch = make_batch()
    before = learner.score(batch)
    learner.update(algorithm.compute_advantages(before)[0], algorithm)
    after = learner.score(batch)
    assert torch.equal(before.ref_logprobs, after.ref_logprobs)
    assert (before.old_logprobs - after.old_logprobs).abs().max() > 1e-3


def snapshot(learner):
    return {n: p.detach().clone() for n, p in [*learner.actor.named_parameters(), *learner.critic.named_parameters()]}


def test_a_batch_is_trained_on_minibatch_by_minibatch(tiny_model):
    rows = [torch.tensor([7, 0, 3]), torch.tensor([1, 2, 11]), None]
    (one, algorithm), (other, _) = (make(make_recipe(tiny_model)) for _ in range(2))
    credited, _ = algorithm.compute_advantages(one.score(make_batch()))
    expected = [other.update(credited if part is None else credited.select(part), algorithm) for part in rows]
    assert one.train(credited, rows, algorithm) == expected
    assert one.updates == other.updates == 6
    assert all(torch.equal(a, b) for a, b in zip(one.actor.parameters(), other.actor.parameters(), strict=True))


def test_a_bad_loss_is_refused_and_no_weight_moves(learner_and_algorithm):
    """verl 747: NaN first, then "!!!!" for the rest of the run."""
    learner, algorithm = learner_and_algorithm
    credited, _ = algorithm.compute_advantages(learner.score(make_batch()))
    bad = replace(credited, advantages=credited.advantages.clone().index_fill_(0, torch.tensor([3]), float("nan")))
    before = snapshot(learner)
    with pytest.raises(NonFiniteError, match=r"loss/policy is nan"):
        learner.update(bad, algorithm)
    assert all(torch.equal(before[n], p) for n, p in snapshot(learner).items())
    assert learner.updates == 0
    learner.update(credited, algorithm)
    assert learner.updates == 2


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_gradient_is_refused_and_its_tensor_named(learner_and_algorithm, bad):
    learner, algorithm = learner_and_algorithm
    credited, _ = algorithm.compute_advantages(learner.score(make_batch()))
    weight = learner.critic.head.weight
    weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor([0, 1]), bad))
    before = snapshot(learner)
    with pytest.raises(NonFiniteError, match=r"critic: .* 2 of 32 elements of the gradient of head.weight"):
        learner.update(credited, algorithm)
    assert all(torch.equal(before[n], p) for n, p in snapshot(learner).items())


@pytest.mark.parametrize("part", [0, 1], ids=["log-probs", "entropy"])
def test_a_loss_of_one_part_of_a_chunked_head_has_the_gradient_of_that_part(part):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 8), torch.randn(30, 8), torch.randint(0, 30, (20,))
    grads = []
    for max_logits in (30 * 7, 10**9):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        token_logprobs(h, w, targets, max_logits=max_logits)[part].sum().backward()
        grads.append((h.grad, w.grad))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_chunked_log_probs_equal_unchunked_ones_gradients_too():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    targets = torch.randint(0, 30, (50,), generator=generator)
    results = []
    for max_logits in (1, 30 * 7, 10**9):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs, entropy = token_logprobs(h, w, targets, temperature=0.6, max_logits=max_logits)
        (logprobs.sum() + 0.3 * entropy.sum()).backward()
        results.append((logprobs, entropy, h.grad, w.grad))
    for chunked in results[:2]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(chunked, results[2], strict=True))
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    distributions = torch.log_softmax(exact[0] @ exact[1].T / 0.6, dim=-1)
    own_entropy = -(distributions.exp() * distributions).sum()
    (distributions.gather(-1, targets[:, None]).sum() + 0.3 * own_entropy).backward()
    for found in results:
        assert all(torch.allclose(a.double(), b.grad, atol=1e-5) for a, b in zip(found[2:], exact, strict=True))
    expected = torch.distributions.Categorical(logits=hidden @ weight.T / 0.6)
    assert torch.allclose(results[2][0], expected.log_prob(targets), atol=1e-5)
    assert torch.allclose(results[2][1], expected.entropy(), atol=1e-5)
