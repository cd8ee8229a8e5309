"""Optimizer state in checkpoints: stored by parameter name, restored bit for bit, whichever optimizer it is."""

import json

import pytest
import torch

from simplerl.errors import CheckpointError, ConfigError
from simplerl.learner.optimizer import ModelOptimizer
from simplerl.learner.optimizers.adamw import Config as AdamW
from simplerl.learner.optimizers.muon import Config as Muon
from simplerl.learner.parallel import SingleProcess
from simplerl.learner.state import load_optimizer_state, optimizer_state, restore_models, save_models
from simplerl.storage import checkpoint

pytestmark = pytest.mark.unit

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


class Layer(torch.nn.Linear):
    """A decoder layer, for Muon."""


class Model(torch.nn.Sequential):
    _no_split_modules = ("Layer",)

    def __init__(self):
        super().__init__(Layer(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))


def make(seed, config=AdamW):
    torch.manual_seed(seed)
    return ModelOptimizer("actor", Model(), config(learning_rate=3e-4, weight_decay=0.1), horizon=10)


def take_step(optimizer, seed):
    optimizer.model.zero_grad()
    torch.manual_seed(seed)
    optimizer.model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()


def bits(tensor):
    return tensor.view(torch.int32)


@pytest.mark.parametrize("config", [AdamW, Muon], ids=["adamw", "muon"])
def test_an_optimizer_from_a_checkpoint_takes_the_same_next_steps_bit_for_bit(tmp_path, config):
    optimizer = make(0, config)
    for seed in range(3):
        take_step(optimizer, seed)
    tensors, rest = optimizer_state(optimizer)
    path = checkpoint.save(tmp_path, 3, {"actor": dict(optimizer.model.state_dict()), "opt": tensors}, {"opt": rest})

    other = make(1, config)
    tensors, state = checkpoint.load(path)
    other.model.load_state_dict(tensors["actor"])
    other.updates = optimizer.updates
    load_optimizer_state(other, tensors["opt"], state["opt"])
    for seed in range(3, 6):
        take_step(optimizer, seed)
        take_step(other, seed)

    for one, two in zip(optimizer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(bits(one.data), bits(two.data))
    groups = [group for part in other.torch_optimizers for group in part.param_groups]
    assert groups[-1]["betas"] == (0.9, 0.95), "JSON has lists only"


def test_state_is_named_by_parameter_and_key():
    optimizer = make(0)
    take_step(optimizer, 0)
    tensors, rest = optimizer_state(optimizer)
    assert set(tensors) == {f"{name}.{key}" for name in NAMES for key in ("step", "exp_avg", "exp_avg_sq")}
    assert rest["values"] == {}
    assert [group["params"] for group in rest["groups"]] == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    assert [group["weight_decay"] for group in rest["groups"]] == [0.1, 0.0]


def test_two_torch_optimizers_of_a_model_are_one_state():
    """Muon has the matrix of the layer alone; its head, although a matrix too, is AdamW's."""
    optimizer = make(0, Muon)
    take_step(optimizer, 0)
    tensors, rest = optimizer_state(optimizer)
    adamw = {f"{name}.{key}" for name in NAMES[1:] for key in ("step", "exp_avg", "exp_avg_sq")}
    assert set(tensors) == {"0.weight.momentum_buffer"} | adamw
    assert [group["params"] for group in rest["groups"]] == [["0.weight"], ["2.weight"], ["0.bias", "2.bias"]]


def test_a_restored_optimizer_shares_no_memory_with_what_was_loaded():
    optimizer, other = make(0), make(0)
    take_step(optimizer, 0)
    tensors, rest = optimizer_state(optimizer)
    before = {name: value.clone() for name, value in tensors.items()}
    load_optimizer_state(other, before, rest)
    take_step(other, 1)
    assert all(torch.equal(before[name], tensors[name]) for name in tensors)


def test_an_optimizer_before_its_first_step_comes_back_empty():
    optimizer = make(0)
    tensors, rest = optimizer_state(optimizer)
    assert tensors == {}
    load_optimizer_state(optimizer, tensors, json.loads(json.dumps(rest)))
    assert optimizer_state(optimizer)[0] == {}


def test_the_state_of_another_model_is_refused():
    optimizer = make(0)
    take_step(optimizer, 0)
    tensors, rest = optimizer_state(optimizer)
    other = ModelOptimizer("actor", torch.nn.Linear(3, 1, bias=False), AdamW(learning_rate=1e-3), horizon=10)
    with pytest.raises(CheckpointError, match=r"groups of \[2, 2\] parameters, this model \[1, 0\]"):
        load_optimizer_state(other, tensors, rest)
    renamed = [group | {"params": [f"body.{name}" for name in group["params"]]} for group in rest["groups"]]
    with pytest.raises(CheckpointError, match="or their names differ"):
        load_optimizer_state(optimizer, tensors, rest | {"groups": renamed})
    with pytest.raises(CheckpointError, match="or their names differ"):
        load_optimizer_state(optimizer, tensors | {"1.weight.exp_avg": torch.zeros(7)}, rest)
    tensors["0.bias.exp_avg"] = torch.zeros(8)
    with pytest.raises(CheckpointError, match=r"0\.bias\.exp_avg has shape \[8\], its parameter \[7\]"):
        load_optimizer_state(optimizer, tensors, rest)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def saved(optimizer, folder):
    """A checkpoint's folder and scalars, as they come back from JSON."""
    return folder, json.loads(json.dumps(save_models({"actor": optimizer}, SingleProcess(), folder)))


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    optimizer = make(0)
    take_step(optimizer, 0)
    message = (
        r"holds the state of actor\.name=adamw, the recipe says actor\.name=muon; continue with actor\.name=adamw$"
    )
    with pytest.raises(CheckpointError, match=message):
        restore_models({"actor": make(0, Muon)}, SingleProcess(), *saved(optimizer, tmp_path))


def test_a_checkpoint_written_before_0_2_is_refused(tmp_path):
    optimizer = make(0)
    folder, _ = saved(optimizer, tmp_path)
    with pytest.raises(CheckpointError, match=r"names no optimizer of the actor: it was written before 0\.2$"):
        restore_models({"actor": optimizer}, SingleProcess(), folder, {"actor": {"updates": 2, "adamw": {}}})


# --- a file of one's own ----------------------------------------------------------------------------------------------

COUNTING = '''
from simplerl.config import OptimizerConfig


class Config(OptimizerConfig):
    momentum: float = 0.9

    def state_bytes(self, tensor):
        return 4 * tensor.numel


def build(config, parameters):
    import torch

    class Counting(torch.optim.SGD):
        """Counts its steps, in the state and in the group, and takes the count into the step."""

        def step(self):
            for group in self.param_groups:
                group["taken"] = group.get("taken", 0) + 1
                for weight in group["params"]:
                    self.state[weight]["count"] = self.state[weight].get("count", 0) + 1
                    weight.grad.mul_(group["taken"] * self.state[weight]["count"])
            super().step()

    weights = [each.weight for each in parameters]
    return [Counting(weights, lr=config.learning_rate, momentum=config.momentum)]
'''


def own_file(folder, returned="weights"):
    from simplerl.config import load_recipe

    path = folder / "counting.py"
    path.write_text(COUNTING.replace("Counting(weights,", f"Counting({returned},"))
    return load_recipe("quickstart", [f"actor.path={path}", "actor.momentum=0.5"]).actor


def test_a_file_of_ones_own_is_an_optimizer_and_its_state_is_restored(tmp_path):
    config = own_file(tmp_path)
    assert (config.name, config.learning_rate, config.schedule) == ("counting", 2e-4, "constant")
    one, other = (ModelOptimizer("actor", Model(), config, horizon=10) for _ in range(2))
    for seed in range(3):
        take_step(one, seed)
    folder, scalars = saved(one, tmp_path)
    assert scalars["actor"]["values"] == {f"{name}.count": 3 for name in NAMES}
    assert scalars["actor"]["groups"][0]["taken"] == 3
    restore_models({"actor": other}, SingleProcess(), folder, scalars)
    take_step(one, 3)
    take_step(other, 3)
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(bits(first.data), bits(second.data))


def test_every_parameter_has_one_optimizer(tmp_path):
    config = own_file(tmp_path, "weights[1:]")
    message = (
        r"actor\.name=counting: its optimizers hold 3 parameters; each of the model's 4 must be in one of them, once"
    )
    with pytest.raises(ConfigError, match=message):
        ModelOptimizer("actor", Model(), config, horizon=10)
