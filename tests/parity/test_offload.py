"""Activations that wait on the host: the same losses and gradients, and what goes there."""

from contextlib import nullcontext

import engine_models as tiny
import pytest
import torch
from learner_cases import make_batch, make_learner
from torch.autograd.graph import saved_tensors_hooks

from simplerl.config import ModelConfig, load_recipe
from simplerl.errors import ConfigError
from simplerl.learner.offload import SMALL, on_host, saved_activations

pytestmark = pytest.mark.parity

TORCH, PADDED = "model.kernels=torch", "train.packing=false"
CHECKPOINTS = "model.gradient_checkpointing=true"
WAYS = {
    "kernels": [],
    "torch": [TORCH],
    "padded, lanes": [TORCH, PADDED, "train.cpu_threads=2"],
    "checkpoints": [TORCH, CHECKPOINTS],
    "bfloat16": [TORCH, "model.dtype=bfloat16"],
    "adapters": [TORCH, "model.lora.rank=4"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tiny.model(scale=0.1, num_hidden_layers=3), tmp_path_factory.mktemp("offload")))


class Spy:
    """What was kept and whether it went to the host."""

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", self.hooks)

    def hooks(self, pack, unpack):
        def spying(tensor):
            kept = pack(tensor)
            self.seen.append((tensor, not isinstance(kept, torch.Tensor)))
            return kept

        return saved_tensors_hooks(spying, unpack)

    def moved(self, width):
        """Bytes of tensors of so many columns that went to the host."""
        return sum(tensor.nbytes for tensor, moved in self.seen if moved and tensor.shape[-1:] == (width,))


def gradients(model, settings, block):
    """Metrics and gradients of a minibatch, with the models' forward passes in a block."""
    learner, algorithm = make_learner(model, settings)
    torch.nn.init.normal_(learner.critic.head.weight, std=0.5)
    learner.saved_activations = block
    credited, _ = algorithm.compute_advantages(learner.score(make_batch()))
    metrics = learner.backward(credited, algorithm, train_actor=True)
    found = {
        f"{name}.{key}": parameter.grad
        for name, optimiser in learner.optimizers.items()
        for key, parameter in optimiser.model.named_parameters()
        if parameter.grad is not None
    }
    return metrics, found


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS.keys())
def test_losses_and_gradients_are_the_same_bit_for_bit(model, settings, monkeypatch):
    if "model.lora.rank=4" in settings:
        pytest.importorskip("peft")
    metrics, expected = gradients(model, settings, nullcontext)
    spy = Spy(monkeypatch)
    moved_metrics, found = gradients(model, settings, lambda: on_host(pinned=False))
    assert moved_metrics == metrics and found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    assert {moved for _, moved in spy.seen} == {True, False}
    for tensor, moved in spy.seen:
        weight = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
        assert moved is (not weight and tensor.nbytes >= SMALL)


def test_with_checkpoints_the_inputs_of_layers_go_alone(model, monkeypatch):
    """Nothing of the MLP's 64 columns is kept, and of 32 columns one tensor a layer and what the last norm keeps."""
    for settings, mlp, hidden in ((WAYS["torch"], True, 10), (WAYS["checkpoints"], False, 3 + 3 + 1)):
        learner, _ = make_learner(model, [*settings, "algorithm.kl_coef=0.0"])
        spy = Spy(monkeypatch)
        layout = learner.layout.lay_out(make_batch().select(torch.arange(6)))
        with on_host(pinned=False):
            learner.actor(layout, 1.0)[0].sum().backward()
        one = 4 * 32 * layout.ids.numel()
        assert (spy.moved(64) > 0) is mlp
        assert (spy.moved(32) <= hidden * one) is not mlp


@pytest.mark.parametrize("offload", ["none", "activations", "weights", "all"])
def test_activations_leave_a_gpu_alone(offload):
    config = ModelConfig(offload=offload)
    assert isinstance(saved_activations(config, torch.device("cpu")), nullcontext)
    moves = isinstance(saved_activations(config, torch.device("cuda")), saved_tensors_hooks)
    assert moves is (offload in ("activations", "all"))


def test_weights_wait_in_a_cluster_alone():
    assert load_recipe("quickstart", ["cluster.ray=auto", "model.offload=all"]).model.offloads_weights
    with pytest.raises(ConfigError, match=r"model\.offload=weights needs learners of a cluster.*cluster\.ray=auto"):
        load_recipe("quickstart", ["model.offload=weights"])
