"""Muon: its update by hand, Newton-Schulz against the singular value decomposition, training, resumption, ranks."""

import json
import tomllib

import engine_models as tiny
import pytest
import torch
from learner_cases import make_batch, make_learner, make_recipe
from test_ranks import run

from simplerl.cli.main import run as command
from simplerl.estimate.memory import workers
from simplerl.estimate.shapes import known_shape
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.learner.optimizers.muon import Config
from simplerl.learner.state import optimizer_state

pytestmark = pytest.mark.parity

MUON = ("actor.name=muon", "critic.name=muon")
BFLOAT16 = 2**-8
"""Relative error of one rounding."""


class Layer(torch.nn.Linear):
    """A decoder layer."""


class Model(torch.nn.Sequential):
    _no_split_modules = ("Layer",)


def one_layer(rows, columns, **settings):
    """A layer's matrix of ones and its optimizer, with no warm-up."""
    model = Model(Layer(columns, rows, bias=False))
    torch.nn.init.ones_(model[0].weight)
    config = Config(**{"learning_rate": 0.5, "warmup": 0.0, "schedule": "constant", **settings})
    return model[0].weight, ModelOptimizer("actor", model, config, horizon=10)


def step(weight, optimizer, gradient):
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach().clone()


# --- the update -------------------------------------------------------------------------------------------------------


def test_the_first_update_worked_by_hand():
    """The gradient diag(3, 4) has Frobenius norm 5, so Newton-Schulz begins with singular values 0.6 and 0.8.

    One iteration takes s to 3.4445 s - 4.775 s^3 + 2.0315 s^5: 1.19327 and 0.97648. The step is the learning rate 0.5
    times 0.2 sqrt(2), and the weight decays by 0.5 x 0.1 first.
    """
    weight, optimizer = one_layer(2, 2, ns_steps=1, weight_decay=0.1)
    moved = step(weight, optimizer, torch.diag(torch.tensor([3.0, 4.0])))
    scale = 0.5 * 0.2 * 2**0.5
    assert (0.95 - moved).diagonal().tolist() == pytest.approx([1.19327 * scale, 0.97648 * scale], rel=2 * BFLOAT16)
    assert moved[0, 1].item() == moved[1, 0].item() == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("nesterov", "singular"),
    [
        # (1 - 0.5) g2 + 0.5 b2 = (3, 4) of b2 = 0.5 b1 + 0.5 g2 = (6, 8/3) and b1 = 0.5 g1 = (12, 0).
        (True, (0.6, 0.8)),
        (False, (0.913812, 0.406138)),
    ],
)
def test_momentum_worked_by_hand(nesterov, singular):
    weight, optimizer = one_layer(2, 2, ns_steps=1, momentum=0.5, nesterov=nesterov)
    before = step(weight, optimizer, torch.diag(torch.tensor([24.0, 0.0])))
    after = step(weight, optimizer, torch.diag(torch.tensor([0.0, 16 / 3])))
    expected = [0.1 * 2**0.5 * (3.4445 * s - 4.775 * s**3 + 2.0315 * s**5) for s in singular]
    assert (before - after).diagonal().tolist() == pytest.approx(expected, rel=4 * BFLOAT16)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)], ids=str)
def test_newton_schulz_leaves_singular_vectors_and_makes_values_nearly_one(shape):
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.linspace(0.05, 1.0, min(shape))
    weight, optimizer = one_layer(*shape)
    moved = 1 - step(weight, optimizer, u @ values.diag() @ v.T)
    rotated = u.T @ (moved / (0.5 * 0.2 * max(shape) ** 0.5)) @ v
    assert rotated.diagonal().min() > 0.65 and rotated.diagonal().max() < 1.25
    assert (rotated - rotated.diagonal().diag()).abs().max() < 0.06
    # The scale makes the root mean square 0.2 learning rates, whatever the shape.
    rms = moved.square().mean().sqrt().item() / 0.5
    assert 0.2 * 0.65 < rms < 0.2 * 1.25


def test_what_is_no_matrix_of_a_layer_moves_as_by_adamw():
    """The first step of AdamW is the learning rate times the gradient's sign."""
    model = Model(Layer(3, 2), torch.nn.Linear(2, 4, bias=False), torch.nn.Embedding(5, 3))
    config = Config(learning_rate=0.5, warmup=0.0)
    optimizer = ModelOptimizer("actor", model, config, horizon=10)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.linspace(-1, 1, weight.numel() + 1)[1:].reshape(weight.shape)
    optimizer.step()
    for name, weight in model.named_parameters():
        signs = torch.equal((before[name] - weight.detach()).mul(2).round(decimals=3), weight.grad.sign())
        assert signs is (name != "0.weight"), name


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tiny.model(scale=0.1), tmp_path_factory.mktemp("muon")))


def update(learner, algorithm, seed=0):
    return learner.update(algorithm.compute_advantages(learner.score(make_batch(seed)))[0], algorithm)


def weights(learner):
    return {
        f"{name}.{key}": value.detach().clone()
        for name, optimizer in learner.optimizers.items()
        for key, value in optimizer.model.named_parameters()
    }


def state(learner):
    return {
        f"{name}.{key}": value.clone()
        for name, optimizer in learner.optimizers.items()
        for key, value in optimizer_state(optimizer)[0].items()
    }


def test_only_matrices_of_layers_have_a_momentum(model):
    learner, algorithm = make_learner(model, [*MUON])
    update(learner, algorithm)
    momenta = {key.removesuffix(".momentum_buffer") for key in state(learner) if key.endswith(".momentum_buffer")}
    layers = {key for key, value in weights(learner).items() if ".layers." in key and value.ndim == 2}
    assert momenta == layers
    assert len(layers) == 2 * 7 * len(learner.actor.causal_lm.model.layers)


def test_a_checkpoint_takes_what_is_said_of_it(model, tmp_path):
    learner, algorithm = make_learner(model, [*MUON])
    update(learner, algorithm)
    learner.save(tmp_path)
    size = sum(value.nbytes for value in (*weights(learner).values(), *state(learner).values()) if value.ndim)
    assert learner.checkpoint_bytes == size


@pytest.mark.parametrize("more", [(), ("train.cpu_threads=2",), ("model.lora.rank=4",)], ids=["one", "threads", "lora"])
def test_a_learner_from_a_checkpoint_continues_bit_for_bit(model, tmp_path, more):
    if "model.lora.rank=4" in more:
        pytest.importorskip("peft")
    learner, algorithm = make_learner(model, [*MUON, "actor.weight_decay=0.1", *more])
    for seed in range(2):
        update(learner, algorithm, seed)
    scalars = json.loads(json.dumps(learner.save(tmp_path)))
    other, _ = make_learner(model, [*MUON, "actor.weight_decay=0.1", *more])
    other.restore(tmp_path, scalars)
    stored, back = state(learner), state(other)
    assert back.keys() == stored.keys() and all(torch.equal(back[name], value) for name, value in stored.items())
    for seed in range(2, 5):
        assert update(other, algorithm, seed) == update(learner, algorithm, seed)
    expected = weights(learner)
    assert all(torch.equal(value, expected[name]) for name, value in weights(other).items())


def test_rounding_of_gradients_changes_updates_by_a_percent_at_most(model):
    """Gradients of other micro-batches agree to 1e-6, and bfloat16 rounds them to values 0.4 % apart."""
    moved = []
    for tokens in (64, 4096):
        learner, algorithm = make_learner(model, [*MUON, f"train.micro_batch_tokens={tokens}"])
        before = weights(learner)
        for seed in range(3):
            update(learner, algorithm, seed)
        moved.append({name: value - before[name] for name, value in weights(learner).items()})
    small, large = moved
    layers = [name for name, value in small.items() if ".layers." in name and value.ndim == 2]
    assert 1e-4 < max(((large[name] - small[name]).norm() / small[name].norm()).item() for name in layers) < 0.02


def test_two_ranks_take_nearly_the_same_steps(tmp_path):
    """Gradients agree to 1e-6; Newton-Schulz in bfloat16 rounds the sharded products otherwise and amplifies that."""
    folder = tmp_path / "model"
    base = tiny.save(tiny.model(scale=0.1), folder)
    (one, metrics), (two, others) = (run(ranks, base, tmp_path, *MUON) for ranks in (1, 2))
    assert others[0] == pytest.approx(metrics[0], abs=1e-6, rel=1e-5)
    started = tiny.model(scale=0.1).state_dict()
    moved = {name.removeprefix("weights."): value for name, value in one.items() if name.startswith("weights.")}
    for name, value in moved.items():
        first, second = value - started[name], two[f"weights.{name}"] - started[name]
        similarity = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        assert similarity > 0.99, name
        assert second.norm() == pytest.approx(first.norm().item(), rel=0.02), name
    assert any(".layers." in name for name in moved)


def test_the_plan_has_the_bytes_that_the_state_takes():
    learner, algorithm = make_learner("tiny-math-base", [*MUON])
    update(learner, algorithm)
    shape = known_shape("tiny-math-base")
    assert shape is not None
    (worker,) = workers(make_recipe("tiny-math-base", [*MUON]), shape, device="cpu")
    held = sum(value.nbytes for value in state(learner).values() if value.ndim)
    assert worker.phases["update"]["moments"] == held
    assert 0.5 * 8 < held / sum(value.numel() for value in weights(learner).values()) < 0.7 * 8


def test_a_dry_run_shows_what_muon_is_set_to(capsys):
    assert command(["train", "quickstart", "--dry-run", "--set", "actor.name=muon"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)["actor"]
    assert (shown["name"], shown["learning_rate"], shown["momentum"], shown["ns_steps"]) == ("muon", 2e-4, 0.95, 5)
