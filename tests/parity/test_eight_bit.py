"""AdamW with moments in 8 bits: how much memory they take, how near float32 it stays, exact resumption."""

import json
import sys
from dataclasses import replace

import engine_models as tiny
import pytest
import torch
from learner_cases import make_batch, make_learner

from simplerl.config import TensorSpec, load_recipe
from simplerl.errors import CheckpointError, ConfigError, DependencyError, NonFiniteError
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.learner.optimizers.adamw import Config as Float32
from simplerl.learner.optimizers.adamw_8bit import Config as EightBit
from simplerl.learner.state import optimizer_state

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.parity

EIGHT = ("actor.name=adamw-8bit", "critic.name=adamw-8bit")
DECAY = ("actor.weight_decay=0.1", "critic.weight_decay=0.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny.model(hidden_size=128, intermediate_size=256, scale=0.1)
    return str(tiny.save(made, tmp_path_factory.mktemp("eight-bit")))


def credited_by(learner, algorithm, seed=0):
    return algorithm.compute_advantages(learner.score(make_batch(seed)))[0]


def update(learner, algorithm, seed=0):
    return learner.update(credited_by(learner, algorithm, seed), algorithm)


def weights(learner):
    return {
        f"{name}.{key}": value.detach().clone()
        for name, optimizer in learner.optimizers.items()
        for key, value in optimizer.model.named_parameters()
    }


def held(optimizer):
    """Bytes of an optimizer's tensors, each storage once."""
    found = {}
    (part,) = optimizer.torch_optimizers
    for state in part.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.ndim:
                found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(found.values())


# --- memory -----------------------------------------------------------------------------------------------------------


def test_moments_take_about_a_quarter(model):
    learner, algorithm = make_learner(model, [*EIGHT])
    update(learner, algorithm)
    codes = 2 * 256 * 4  # what the codes stand for, signed and not, is there once for an optimizer
    for optimizer in learner.optimizers.values():
        tensors = [p.numel() for p in optimizer.model.parameters()]
        planned = sum(optimizer.config.state_bytes(each.spec) for each in optimizer.parameters)
        assert held(optimizer) == planned + codes
        assert planned < 0.26 * 8 * sum(tensors)
    plain, algorithm = make_learner(model, [])
    update(plain, algorithm)
    assert held(plain.optimizers["actor"]) == 8 * sum(p.numel() for p in plain.actor.parameters())


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(4095, 8 * 4095), (4096, 2 * 4096 + 8 * 16), (4097, 2 * 4097 + 8 * 17)],
    ids=["small ones stay float32", "whole blocks", "a block begun"],
)
def test_bytes_of_moments(numbers, expected):
    tensor = TensorSpec((numbers,), in_layer=True)
    assert EightBit(learning_rate=1e-3).state_bytes(tensor) == expected
    assert Float32(learning_rate=1e-3).state_bytes(tensor) == 8 * numbers


def test_a_checkpoint_takes_what_is_said_of_it(model, tmp_path):
    learner, algorithm = make_learner(model, [*EIGHT])
    update(learner, algorithm)
    learner.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert learner.checkpoint_bytes == pytest.approx(size, rel=0.02)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_first_update_is_that_of_float32(model):
    """Moments are rounded only once they have been used."""
    (plain, algorithm), (rounded, _) = make_learner(model, [*DECAY]), make_learner(model, [*DECAY, *EIGHT])
    credited = credited_by(plain, algorithm)
    before = weights(plain)
    metrics = plain.update(credited, algorithm)
    assert rounded.update(credited, algorithm) == pytest.approx(metrics, rel=1e-6)
    after = weights(rounded)
    for name, value in weights(plain).items():
        assert torch.allclose(after[name], value, atol=1e-7, rtol=1e-6), name
    assert max((value - before[name]).abs().max() for name, value in after.items()) > 1e-4


ROUNDING = 0.09
"""A code of the first moment is off by at most 0.0070 of its block's largest, one of the second by 0.0035 (64 and 128
values in the decade below 1). For an element within a decade of its block's largest that is 7 % of m and 1.8 % of
sqrt(v), 9 % of the step; smaller ones move less."""


def test_settings_are_those_of_float32():
    """The same gradients to both: what is kept in float32 moves alike, what is rounded nearly so."""
    settings = {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.5, "warmup": 0.5, "max_grad_norm": 1e9}
    moved = []
    for config in (Float32, EightBit):
        torch.manual_seed(0)
        model = torch.nn.ParameterList([torch.randn(60, 60), torch.randn(80, 80), torch.randn(300)])
        optimizer = ModelOptimizer("actor", model, config(learning_rate=1e-2, **settings), 8)
        begun = [parameter.detach().clone() for parameter in model]
        for _ in range(8):
            for parameter in model:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        moved.append([parameter.detach() - old for parameter, old in zip(model, begun, strict=True)])
    (small, large, bias), (same, rounded, other) = moved
    assert torch.allclose(same, small, atol=1e-6) and torch.allclose(other, bias, atol=1e-6)
    assert 1e-4 * large.norm() < (rounded - large).norm() < ROUNDING * large.norm()


def test_the_likelihood_rises_as_with_float32(model):
    falls = []
    for settings in (DECAY, (*DECAY, *EIGHT)):
        learner, algorithm = make_learner(model, [*settings, "algorithm.kl_coef=0.0", "algorithm.kl_loss_coef=0.0"])
        credited = credited_by(learner, algorithm)
        credited = replace(credited, advantages=torch.ones_like(credited.advantages))
        before = learner.logprobs(credited).mean()
        for _ in range(3):
            learner.update(replace(credited, old_logprobs=learner.logprobs(credited)), algorithm)
        falls.append((learner.logprobs(credited).mean() - before).item())
    assert falls[0] > 0.5
    assert falls[1] == pytest.approx(falls[0], rel=ROUNDING)
    assert falls[1] != falls[0]


def test_a_gradient_that_is_not_finite_moves_nothing(model):
    learner, algorithm = make_learner(model, [*EIGHT])
    update(learner, algorithm)
    before, kept = weights(learner), moments(learner)
    learner.critic.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError, match=r"critic: .* of the gradient of head.weight"):
        update(learner, algorithm)
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())
    assert all(torch.equal(kept[name], value) for name, value in moments(learner).items())


def moments(learner):
    return {
        f"{name}.{key}": value.clone()
        for name, optimizer in learner.optimizers.items()
        for key, value in optimizer_state(optimizer)[0].items()
    }


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [(), ("train.cpu_threads=2",), ("model.lora.rank=32",)], ids=["one lane", "lanes", "lora"]
)
def test_a_learner_from_a_checkpoint_goes_on_bit_for_bit(model, tmp_path, more):
    if "model.lora.rank=32" in more:
        pytest.importorskip("peft")
    learner, algorithm = make_learner(model, [*DECAY, *EIGHT, *more])
    for seed in range(2):
        update(learner, algorithm, seed)
    scalars = json.loads(json.dumps(learner.save(tmp_path)))
    kept = moments(learner)
    assert any(value.dtype == torch.uint8 for value in kept.values())

    other, _ = make_learner(model, [*DECAY, *EIGHT, *more])
    other.restore(tmp_path, scalars)
    back = moments(other)
    assert back.keys() == kept.keys()
    assert all(back[name].dtype == value.dtype and torch.equal(back[name], value) for name, value in kept.items())
    for seed in range(2, 5):
        assert update(other, algorithm, seed) == update(learner, algorithm, seed)
    expected = weights(learner)
    assert all(torch.equal(value, expected[name]) for name, value in weights(other).items())


@pytest.mark.parametrize(("stored", "wanted"), [((), EIGHT), (EIGHT, ())], ids=["float32 into 8-bit", "the other way"])
def test_moments_kept_otherwise_are_refused(model, tmp_path, stored, wanted):
    learner, algorithm = make_learner(model, [*stored])
    update(learner, algorithm)
    scalars = learner.save(tmp_path)
    before, now = ("actor.name=adamw-8bit" if each else "actor.name=adamw" for each in (stored, wanted))
    message = f"holds the state of {before}, the recipe says {now}; continue with {before}$"
    with pytest.raises(CheckpointError, match=message):
        make_learner(model, [*wanted])[0].restore(tmp_path, scalars)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for module in [name for name in sys.modules if name.startswith("bitsandbytes.optim")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(DependencyError, match=r"adamw-8bit needs bitsandbytes.*'simplerl\[8bit\]'"):
        ModelOptimizer("critic", torch.nn.Linear(2, 2), EightBit(learning_rate=1e-3), 1)


def test_sharded_learners_are_refused():
    spread = ["cluster.ray=auto", "actor.name=adamw-8bit"]
    assert load_recipe("quickstart", spread).actor.name == "adamw-8bit"
    for setting in ("cluster.learners=2", "model.offload=weights"):
        with pytest.raises(ConfigError, match=rf"actor\.name=adamw-8bit cannot be used with {setting}: bitsandbytes"):
            load_recipe("quickstart", [*spread, setting])
