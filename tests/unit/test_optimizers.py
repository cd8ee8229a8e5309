"""Optimizers in recipes, and the learning rate of every update, by hand."""

import pytest
import torch

from simplerl.config import SFTRecipe, TensorSpec, load_recipe, validate_recipe
from simplerl.errors import ConfigError
from simplerl.learner.optimizer import ModelOptimizer, learning_rate, trained_parameters
from simplerl.learner.optimizers import adamw, muon
from simplerl.learner.optimizers.base import decay_groups

pytestmark = pytest.mark.unit

# --- learning rate ----------------------------------------------------------------------------------------------------

COSINE = adamw.Config(learning_rate=8.0, warmup=0.04, min_lr_ratio=0.25)


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (0, 2.0),  # four updates of warm-up: a quarter, a half, ...
        (1, 4.0),
        (3, 8.0),
        (4, 8.0),  # the cosine begins at its top
        (28, 8 * (0.25 + 0.75 * 0.8535533905932737)),  # a quarter of the way: (1 + cos 45°) / 2
        (52, 8 * (0.25 + 0.75 * 0.5)),
        (68, 8 * (0.25 + 0.75 * 0.25)),  # two thirds: (1 + cos 120°) / 2
        (100, 2.0),
        (10_000, 2.0),
    ],
)
def test_warm_up_then_cosine_then_the_floor(update, rate):
    assert learning_rate(COSINE, update, horizon=100) == pytest.approx(rate, rel=1e-12)


def test_a_constant_rate_after_the_warm_up():
    config = adamw.Config(learning_rate=6.0, schedule="constant", warmup=0.3)
    assert [learning_rate(config, update, 10) for update in (0, 1, 2, 3, 9, 50)] == [2.0, 4.0, 6.0, 6.0, 6.0, 6.0]


def test_part_of_an_update_of_warm_up_is_a_whole_one():
    config = adamw.Config(learning_rate=6.0, schedule="constant", warmup=0.11)
    assert [learning_rate(config, update, 10) for update in range(3)] == [3.0, 6.0, 6.0]


@pytest.mark.parametrize(("horizon", "rates"), [(1, [8.0, 8.0, 2.0]), (2, [8.0, 8.0, 2.0])])
def test_the_shortest_runs(horizon, rates):
    assert [learning_rate(COSINE, update, horizon) for update in range(3)] == rates


def test_without_warm_up_the_first_update_has_the_full_rate():
    config = adamw.Config(learning_rate=8.0, warmup=0.0, min_lr_ratio=0.0)
    assert [learning_rate(config, update, 2) for update in range(3)] == pytest.approx([8.0, 4.0, 0.0])


@pytest.mark.parametrize("config", [adamw.Config, muon.Config])
def test_every_group_has_the_rate_of_its_update(config):
    model = torch.nn.Linear(2, 2)
    settings = {"learning_rate": 6.0, "schedule": "constant", "warmup": 0.3}
    optimizer, rates = ModelOptimizer("actor", model, config(**settings), horizon=10), []
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert optimizer.metrics(torch.tensor(3.0)) == {
            "actor/grad_norm": 3.0,
            "actor/lr": (2.0, 4.0, 6.0, 6.0)[len(rates)],
        }
        optimizer.step()
        rates.append({group["lr"] for part in optimizer.torch_optimizers for group in part.param_groups})
    assert rates == [{2.0}, {4.0}, {6.0}, {6.0}]
    assert optimizer.updates == 4


def test_clipping_scales_all_gradients_by_one_factor():
    model = torch.nn.ParameterList([torch.zeros(2), torch.zeros(1)])
    optimizer = ModelOptimizer("actor", model, adamw.Config(learning_rate=1.0, max_grad_norm=6.5), horizon=1)
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])  # their norm is 13
    assert optimizer.clip_gradients().item() == 13.0
    assert model[0].grad.tolist() == pytest.approx([1.5, 2.0])
    assert model[1].grad.tolist() == pytest.approx([6.0])
    assert optimizer.clip_gradients().item() == pytest.approx(6.5), "below the limit nothing is scaled"


# --- parameters -------------------------------------------------------------------------------------------------------


def test_adamw_worked_by_hand():
    """A step of AdamW: means of 1 - beta, corrected to the gradient and its square, so the step is its sign."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 4.0)
    torch.nn.init.constant_(model.bias, 4.0)
    config = adamw.Config(learning_rate=0.5, weight_decay=0.1, warmup=0.0, eps=1.0)
    optimizer = ModelOptimizer("actor", model, config, horizon=10)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, -1.0]]), torch.tensor([1.0])
    optimizer.step()
    # 4 (1 - 0.5 x 0.1) - 0.5 g / (|g| + 1); the bias does not decay.
    assert model.weight.tolist()[0] == pytest.approx([3.8 - 0.375, 3.8 + 0.25])
    assert model.bias.tolist() == pytest.approx([4.0 - 0.25])


def test_matrices_decay_and_vectors_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Embedding(5, 2))
    model[2].requires_grad_(False)
    parameters = trained_parameters(model)
    assert [each.name for each in parameters] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    decayed, plain = decay_groups(parameters, 0.3)
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert [id(each) for each in decayed["params"]] == [id(model[0].weight)]
    assert [id(each) for each in plain["params"]] == [id(each) for each in (model[0].bias, *model[1].parameters())]


def test_tensors_of_layers_are_known_from_those_outside(tiny_model):
    from transformers import AutoModelForCausalLM

    from simplerl.learner.models import PolicyModel, ValueModel

    def outside(model):
        return {each.name for each in trained_parameters(model) if not each.spec.in_layer}

    actor = PolicyModel(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert outside(actor) == {"causal_lm.model.embed_tokens.weight", "causal_lm.model.norm.weight"}, "the head is tied"
    critic = ValueModel(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert outside(critic) == {"body.embed_tokens.weight", "body.norm.weight", "head.weight", "head.bias"}


def test_bytes_of_muon():
    config = muon.Config(learning_rate=1.0)
    sizes = [((6, 10), True), ((6, 10), False), ((10,), True), ((2, 3, 4), True)]
    tensors = [TensorSpec(shape, in_layer) for shape, in_layer in sizes]
    assert [config.state_bytes(tensor) for tensor in tensors] == [4 * 60, 8 * 60, 8 * 10, 8 * 24]
    # The update in float32, twice in bfloat16, and two products of 6 x 6.
    assert config.workspace_bytes(tensors[0], "cpu") == 4 * 60 + 2 * 2 * 60 + 2 * 2 * 36
    assert config.workspace_bytes(tensors[1], "cpu") == 0


# --- recipes ----------------------------------------------------------------------------------------------------------


def minimal(**tables):
    return {"data": {"source": "arithmetic"}, **tables}


def test_what_a_block_leaves_out_has_the_same_defaults_as_without_a_block():
    recipe = validate_recipe(minimal(actor={"betas": [0.8, 0.9]}, critic="muon"))
    assert (recipe.actor.name, recipe.actor.learning_rate, recipe.actor.betas) == ("adamw", 5e-7, (0.8, 0.9))
    assert (recipe.critic.name, recipe.critic.learning_rate) == ("muon", 9e-6)
    plain = validate_recipe(minimal())
    assert (plain.actor.learning_rate, plain.critic.learning_rate) == (5e-7, 9e-6)
    assert plain.actor == recipe.actor.model_copy(update={"betas": (0.9, 0.95)})
    supervised = validate_recipe(minimal(kind="sft", actor={"weight_decay": 0.1}), kind=SFTRecipe)
    assert (supervised.actor.name, supervised.actor.learning_rate) == ("adamw", 1e-5)


def test_naming_another_optimizer_keeps_the_settings_that_it_has_too():
    set_before = ["actor.betas=[0.7, 0.8]", "actor.weight_decay=0.2"]
    recipe = load_recipe("quickstart", [*set_before, "actor.name=muon"])
    quickstart = load_recipe("quickstart").actor
    expected = quickstart.model_dump() | {"name": "muon", "betas": (0.7, 0.8), "weight_decay": 0.2}
    own = {"momentum": 0.95, "nesterov": True, "ns_steps": 5}
    assert recipe.actor.model_dump() == expected | own
    assert load_recipe("quickstart", ["actor=muon"]).actor.learning_rate == 5e-7, "a block as a whole is another block"

    back = load_recipe("quickstart", [*set_before, "actor.name=muon", "actor.momentum=0.5", "actor.name=adamw"])
    assert back.actor.model_dump() == expected | {"name": "adamw"}, "AdamW has no momentum"
    again = load_recipe("quickstart", ["actor.name=muon", "actor.momentum=0.5", "actor.name=muon"])
    assert again.actor.momentum == 0.5


def test_an_unknown_optimizer_is_named_whatever_else_is_set():
    with pytest.raises(
        ConfigError, match=r"optimizers: no 'moun'; did you mean 'muon'\? Available: adamw, adamw-8bit, muon"
    ):
        load_recipe("quickstart", ["actor.momentum=0.5", "actor.name=moun"])


@pytest.mark.parametrize("block", ["actor", "critic"])
def test_the_former_key_names_the_new_one(block):
    with pytest.raises(
        ConfigError, match=rf"^{block}\.moments is now called {block}\.name; adamw-8bit keeps its state"
    ):
        load_recipe("quickstart", [f"{block}.moments=8-bit"])


def test_muon_needs_its_weights_on_its_device():
    assert load_recipe("quickstart", ["actor.name=muon", "cluster.ray=auto", "cluster.learners=2"]).actor.name == "muon"
    with pytest.raises(ConfigError, match=r"^actor\.name=muon cannot be used with model\.offload=all: its matrix prod"):
        load_recipe("quickstart", ["actor.name=muon", "cluster.ray=auto", "model.offload=all"])
