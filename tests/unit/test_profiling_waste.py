"""Where a step's time goes: counted work by hand, kinds of operators, and the sentences about made-up measurements."""

import pytest

from simplerl.profiling.waste import Operator, Phase, Profile, kind_of, text, wastes

pytestmark = pytest.mark.unit


def made(**changes):
    phases = (
        Phase("rollout", 2.0, 1000, 2e9, (Operator("simplerl::decode_layers", 10, 1.5), Operator("aten::add", 9, 0.5))),
        Phase("score", 1.0, 1200, 8e9),
        Phase("update", 4.0, 1200, 30e9, (Operator("aten::mm", 50, 3.0), Operator("aten::copy_", 7, 1.0))),
        Phase("other", 1.0),
    )
    return Profile(**{"phases": phases, "peak": 10e9, "threads": 2, "scored": False, **changes})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("simplerl::decode_layers", "matrix products"),
        ("simplerl::attention_backward", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("simplerl::swiglu_forward", "other kernels"),
        ("aten::copy_", "copies"),
        ("aten::index_select", "copies"),
        ("aten::mul", "elementwise"),
        ("aten::_fused_adamw_", "elementwise"),
        ("cudaLaunchKernel", "rest"),
    ],
)
def test_operators_are_told_apart_by_their_names(name, kind):
    assert kind_of(name) == kind


def test_shares_of_the_step_and_of_a_phase():
    profile = made()
    assert profile.seconds == 8.0
    assert profile.share("update") == 0.5
    assert profile.phase("update").share_of("matrix products") == 0.75
    assert profile.phase("nothing").seconds == 0


def test_the_largest_waste_comes_first():
    """The rollout could give back 2 x (1 - 0.1) = 1.8 s, the update 4 x (1 - 0.75) = 1 s."""
    first, second = wastes(made())
    assert first == (
        "the rollout reaches 10% of the matrix products' peak and is 25% of the step; "
        "25% of its operators' time is elementwise"
    )
    assert second.startswith("the update reaches 75% of the matrix products' peak and is 50% of the step; 25% of its")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scored": True, "updates": 4}, "scoring is 12% of the step and comes before 4 updates"),
        ({"padding": 0.25}, "25% of the tokens that the learner computes are padding: train.packing=true"),
        ({"live": 0.4}, "the mean response has 40% of the longest one's tokens"),
        ({"kernels": "no C compiler is installed"}, "no fused kernels: no C compiler is installed"),
    ],
)
def test_every_rule_speaks_only_when_it_applies(changes, sentence):
    assert any(each.startswith(sentence) for each in wastes(made(**changes)))
    assert not any(each.startswith(sentence[:12]) for each in wastes(made()))


def test_the_text_has_every_phase_and_names_the_largest_waste():
    lines = text(made(memory={"peak resident": 1.5})).splitlines()
    assert lines[1].split() == ["rollout", "2.000", "25%", "1,000", "500", "2.0", "1", "10%"]
    assert "8.000 s on 2 threads; peak 10 GFLOP/s; peak resident 1.50 GiB" in lines
    assert any(line.startswith("largest waste: the rollout reaches 10%") for line in lines)


def test_counted_work_of_a_small_model_by_hand():
    """Two layers: q 4x4, k and v 4x2, o 4x4, mlp 3 x 4x6 = 120 each; a prompt of 2 and a response of 1 token."""
    from simplerl.estimate.shapes import Shape
    from simplerl.profiling.profile import forward_flop

    shape = Shape(
        vocab=10, hidden=4, layers=2, heads=2, kv_heads=1, intermediate=6, head_dim=2, tied=True, qkv_bias=False
    )
    products, head, attention = 2 * 2 * 120 * 3, 2 * 10 * 4 * 1, 4 * 2 * (2 * 2) * (1 + 2 + 3)
    assert forward_flop(shape, [(2, 1)]) == products + head + attention
    assert forward_flop(shape, [(2, 1), (2, 1)]) == 2 * forward_flop(shape, [(2, 1)])
