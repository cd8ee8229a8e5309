"""The memory a recipe takes, against numbers worked by hand on a model of five tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simplerl.config import Recipe, validate_recipe
from simplerl.environment import GIB
from simplerl.estimate.activations import head, kept
from simplerl.estimate.learner_memory import Learner, Passes
from simplerl.estimate.load import ExecutionMode, load_of, models_of, way_of
from simplerl.estimate.memory import Worker, memory, workers
from simplerl.estimate.shapes import KNOWN, Shape

pytestmark = pytest.mark.unit

# 5 tokens of 4 numbers; 2 layers with 2 heads of 2 over 1 key-value head; 3 in the middle. A layer has 84 weights in
# matrices (16 + 8 + 8 + 16 + 36), 8 biases and 8 in norms: 100.
SMALL = Shape(vocab=5, hidden=4, layers=2, heads=2, kv_heads=1, intermediate=3, head_dim=2, tied=True, qkv_bias=True)
ALL = 5 * 4 + 2 * 100 + 4
CRITIC = ALL + 4 + 1
TORCH = ExecutionMode("cuda", False, False, "sdpa", False, None, 0, 1, 1)


def recipe(**tables: Any) -> Recipe:
    base: dict[str, Any] = {
        "data": {"source": "arithmetic", "max_prompt_tokens": 20},
        "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 30},
        "algorithm": {"name": "grpo"},
        "train": {"minibatch_size": 8, "micro_batch_tokens": 100},
        "engine": {"name": "embedded", "max_batch": 10},
    }
    return validate_recipe(base | tables)


def planned(made: Recipe, shape: Shape = SMALL, **how: Any) -> Worker:
    (worker,) = workers(made, shape, device="cuda", **how)
    return worker


def test_a_layer_keeps_what_its_operations_save() -> None:
    # Two norms (input, normalised, output, scale), q, k, v, attention's output twice, log-sum-exps, and of the MLP the
    # gate, its SiLU, up and their product.
    assert kept(SMALL, TORCH, 50) == 2 * (3 * 16 + 4) + 4 * (4 + 2 + 2) + 4 * 4 * 2 + 4 * 2 + 4 * 4 * 3


def test_under_autocast_every_matrix_keeps_its_own_copy_of_what_it_reads() -> None:
    way = replace(TORCH, bfloat16=True)
    norms = 2 * (2 * 16 + 4) + 5 * 2 * 4
    assert kept(SMALL, way, 50) == norms + 2 * (4 + 2 + 2) + 2 * 2 * 4 + 4 * 2 + 2 * 4 * 3
    # Flash attention's output is read where it stands.
    assert kept(SMALL, way, 50) - kept(SMALL, replace(way, attention="flash_attention_2"), 50) == 2 * 4


def test_a_layer_that_is_one_operation_keeps_less() -> None:
    way = replace(TORCH, device="cpu", kernels=True)
    assert kept(SMALL, way, 50) == 4 * (4 + 4 + 4 + (4 + 4) + 6 + 2 + 2)


def test_frozen_weights_keep_no_inputs_but_those_of_adapters() -> None:
    way = replace(TORCH, adapted=("q_proj",), rank=3)
    # Norms keep their input alone; q's adapter reads the first one's output and gives 3 numbers.
    assert kept(SMALL, way, 50) == 2 * 20 + 16 + 32 + 16 + 8 + 4 * 3 * 3 + 4 * 3
    assert way.adapters(SMALL) == 2 * 3 * (4 + 4)


def test_logits_are_formed_in_chunks_where_they_are_many() -> None:
    assert head(SMALL, 60, entropy=False) == (4 * 4 * 300, 4 * 4 * 300, 2 * 4 * 300)
    assert head(SMALL, 60, entropy=True) == (4 * 4 * 300, 5 * 4 * 300, 0)
    # 2^26 logits are 441.7 rows of 151,936. Two float32 copies of the 441.
    wide, chunk = replace(SMALL, vocab=151_936), 2 * 4 * 441 * 151_936
    assert head(wide, 442, entropy=False) == (chunk, chunk, 0)
    assert head(wide, 10**6, entropy=True) == (chunk, chunk, 0)
    whole = 4 * 441 * 151_936
    assert head(wide, 441, entropy=False) == (4 * whole, 4 * whole, 2 * whole)


def test_what_is_always_there() -> None:
    parts = planned(recipe(algorithm={"name": "ppo"})).phases["score"]
    assert parts["parameters"] == 4 * (ALL + CRITIC + ALL)
    assert parts["moments"] == 8 * (ALL + CRITIC)
    assert parts["engine copy"] == 4 * ALL
    assert parts["context"] == GIB


ONE_UPDATE = {"minibatch_size": 24, "micro_batch_tokens": 100}


@pytest.mark.parametrize(
    "train", [{"importance": "truncated"}, {"importance": "masked"}, {"staleness": 1}, {"ppo_epochs": 2}]
)
def test_a_scoring_pass_takes_one_layers_workspace(train: dict[str, Any]) -> None:
    # Two sequences of 50 at once. A token has the embedding, the layer's input, its middle and a norm's output (4 x 4
    # numbers), q, k and v (8), and three float32 tensors of q's size (12): 36 numbers. Logits come later and are fewer.
    assert planned(recipe(train=ONE_UPDATE | train)).phases["score"]["workspace"] == 100 * 36 * 4


def test_without_a_scoring_pass_nothing_is_computed_before_the_update() -> None:
    score = planned(recipe(train=ONE_UPDATE)).phases["score"]
    assert {name for name, size in score.items() if size} == {"parameters", "moments", "context", "engine copy"}


def test_critic_warmup_scores_the_policy_and_later_steps_keep_the_critics_forward_pass() -> None:
    # All 24 sequences of 50 in one micro-batch. In the warm-up a scoring pass of either model needs 36 numbers a token.
    # Later the critic's forward pass is kept for the update: 2 layers of 56 numbers a token (norms 26, q, k and v 8,
    # attention's output twice 8, log-sum-exps 2, MLP 12), the last norm's 4 + 1 + 4, the states of 720 response tokens.
    ppo = {"name": "ppo", "kl_coef": 0.0}
    one_micro_batch = {"minibatch_size": 24, "micro_batch_tokens": 1200}
    for warmup in (0, 1):
        made = recipe(algorithm=ppo, train=one_micro_batch | {"critic_warmup_steps": warmup})
        score = planned(made).phases["score"]
        assert score["activations"] == 1200 * 4 * (2 * 56 + 9) + 720 * 4 * 4
    every_step = recipe(algorithm=ppo, train=one_micro_batch | {"ppo_epochs": 2})
    assert planned(every_step).phases["score"]["workspace"] == 1200 * 36 * 4
    assert "activations" not in planned(every_step).phases["score"]


def test_gradients_and_the_embeddings_sum() -> None:
    # 8 sequences of 50 are four micro-batches of 100. In the last backward pass all gradients are there, the tied
    # head's waits in a buffer, the embedding's comes to it.
    made = recipe()
    way, models = way_of(made, SMALL, "cuda"), models_of(made)
    moments = Passes(Learner(SMALL, way, load_of(made, way, models), models), way, critic=False).moments()
    assert [parts["gradients"] for parts in moments] == [4 * (ALL + new) for new in (0, 20, 20, 40)]
    untied = replace(SMALL, tied=False)
    moments = Passes(Learner(untied, way, load_of(made, way, models), models), way, critic=False).moments()
    assert [parts["gradients"] for parts in moments] == [4 * (ALL + 20 + new) for new in (0, 20, 0, 20)]


def test_adapters_have_gradients_and_moments_and_nothing_else_of_the_actor_has() -> None:
    made = recipe(model={"lora": {"rank": 3}}, algorithm={"name": "grpo", "kl_loss_coef": 0.1})
    adapters = 2 * 3 * ((4 + 4) + (4 + 2) + (4 + 2) + (4 + 4) + 3 * (4 + 3))
    parts = planned(made).phases["update"]
    assert parts["parameters"] == 4 * (ALL + adapters)
    assert (parts["moments"], parts["gradients"]) == (8 * adapters, 4 * adapters)
    # Their product and the weight it is added to, the largest of 4 x 4.
    assert planned(made).phases["weight sync"]["workspace"] == 2 * 4 * 16


def test_the_critic_beside_an_actor_with_adapters_is_trained_whole() -> None:
    parts = planned(recipe(model={"lora": {"rank": 3}}, algorithm={"name": "ppo", "kl_coef": 0.0})).phases["update"]
    adapters = way_of(recipe(model={"lora": {"rank": 3}}), SMALL, "cuda").adapters(SMALL)
    assert parts["moments"] == 8 * (adapters + CRITIC)


def test_moments_in_8_bits() -> None:
    # Two codes a weight and two scales a block of 256; 4,096 numbers at least, so a layer's norms, biases, keys and
    # values stay float32.
    wide = Shape(
        vocab=100, hidden=64, layers=3, heads=2, kv_heads=1, intermediate=65, head_dim=32, tied=False, qkv_bias=True
    )
    large = 3 * (2 * (2 * 4096 + 8 * 16) + 3 * (2 * 4160 + 8 * 17)) + 2 * (2 * 6400 + 8 * 25)
    rest = 3 * (2 * 2048 + 64 + 2 * 32 + 2 * 64) + 64
    made = recipe(actor={"learning_rate": 1e-6, "name": "adamw-8bit"}, algorithm={"name": "ppo", "kl_coef": 0.0})
    critic = wide.critic_parameters
    assert planned(made, wide).phases["update"]["moments"] == large + 8 * rest + 8 * critic
    both = recipe(
        actor={"learning_rate": 1e-6, "name": "adamw-8bit"},
        critic={"learning_rate": 1e-6, "name": "adamw-8bit"},
        algorithm={"name": "ppo", "kl_coef": 0.0},
    )
    head = 2 * 6400 + 8 * 25
    assert planned(both, wide).phases["score"]["moments"] == 2 * large - head + 8 * (2 * rest + 64 + 1)


def test_moments_of_muon() -> None:
    # 84 weights of a layer are in matrices and have one number each; all other tensors have AdamW's two.
    made = recipe(actor={"name": "muon"})
    assert planned(made).phases["update"]["moments"] == 4 * 2 * 84 + 8 * (ALL - 2 * 84)
    made = recipe(actor={"name": "muon"}, model={"lora": {"rank": 3}})
    adapters = way_of(made, SMALL, "cuda").adapters(SMALL)
    assert planned(made).phases["update"]["moments"] == 4 * adapters


def test_tensors_are_all_parameters() -> None:
    for name, tied in (("Qwen2.5-7B", False), ("Qwen2.5-0.5B", True)):
        shape, made = KNOWN[name], recipe(algorithm={"name": "ppo"})
        assert shape.tied is tied
        way, models = way_of(made, shape, "cuda"), models_of(made)
        learner = Learner(shape, way, load_of(made, way, models), models)
        assert {key: sum(each.numel for each in tensors) for key, tensors in learner.trained.items()} == {
            "actor": shape.parameters,
            "critic": shape.critic_parameters,
        }


def test_the_cache_grows_by_halves() -> None:
    # Room for 20 + 30 from the start, rounded up to 56 keys; 10 rows of 2 layers x (2 keys + 2 values).
    assert planned(recipe()).phases["rollout"]["KV cache"] == 10 * 56 * 8 * 4
    # From 20 + 256, rounded up to 280, to 420, rounded up to 424.
    longer = recipe(rollout={"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 300})
    assert planned(longer).phases["rollout"]["KV cache"] == 10 * 424 * 8 * 4
    phases = planned(recipe()).phases
    assert all("KV cache" not in phases[name] for name in ("score", "update", "weight sync"))


def test_cpu_threads_of_the_engine_share_its_batch() -> None:
    # 10 rows over 4 threads are 2 each; a cache of 56 keys, see above.
    engine = {"name": "embedded", "max_batch": 10, "cpu_threads": 4}
    (cpu,) = workers(recipe(engine=engine), SMALL, device="cpu", threads=1)
    assert cpu.phases["rollout"]["KV cache"] == 8 * 56 * 8 * 4


def test_a_cpu_keeps_its_cache_and_vllm_its_share() -> None:
    (cpu,) = workers(recipe(), SMALL, device="cpu", threads=1)
    assert cpu.phases["update"]["KV cache"] == cpu.phases["rollout"]["KV cache"]
    assert "context" not in cpu.phases["update"]
    vllm = planned(recipe(engine={"name": "vllm", "gpu_memory": 0.5}), memory=80 * GIB)
    for phase in ("rollout", "update"):
        parts = vllm.phases[phase]
        held = parts["KV cache"] + parts["engine copy"] + (parts["workspace"] if phase == "rollout" else 0)
        assert held == pytest.approx(40 * GIB)


def test_the_head_is_there_in_float32_beside_an_engine_in_bfloat16() -> None:
    half = planned(recipe(model={"dtype": "bfloat16"}))
    assert half.phases["rollout"]["engine copy"] == 2 * ALL + 4 * 20
    # In a forward pass autocast holds every matrix once more.
    assert half.phases["update"]["cast weights"] == 2 * 2 * 84


def test_checkpoints_keep_a_layers_input_and_one_layer() -> None:
    plain, less = (
        planned(recipe(model={"gradient_checkpointing": on}), replace(SMALL, layers=40)).phases["update"]["activations"]
        for on in (False, True)
    )
    assert plain - less in (100 * (40 * (kept(SMALL, TORCH, 50) - 16)), 100 * (39 * kept(SMALL, TORCH, 50) - 40 * 16))


def test_sharded_learners() -> None:
    spread = recipe(cluster={"ray": "auto", "learners": 4, "engines": 2}, algorithm={"name": "ppo"})
    learner, engine = workers(spread, SMALL, device="cuda")
    assert (learner.role, engine.role) == ("learner", "engine")
    parts = learner.phases["update"]
    assert parts["parameters"] == ALL + CRITIC + ALL
    assert parts["moments"] == 2 * (ALL + CRITIC)
    # What is outside of layers, of the model at work and of the reference; two layers and their gradients.
    assert parts["gathered layers"] == 4 * (2 * 24 + 4 * 100)
    assert "parameters" not in engine.phases["rollout"]
    assert engine.phases["rollout"]["KV cache"] == 10 * 56 * 8 * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_that_wait_on_the_host_leave_one_layer(checkpointing: bool) -> None:
    model = {"offload": "activations", "gradient_checkpointing": checkpointing}
    waiting = planned(recipe(model=model), replace(SMALL, layers=40)).phases["update"]
    # Of two sequences of 50: one layer come back, and the states of 60 responses for the head.
    assert waiting["activations"] in (100 * kept(SMALL, TORCH, 50) + 4 * 4 * 60, 4 * 4 * 60)
    plain = planned(recipe(), replace(SMALL, layers=40)).phases["update"]
    assert waiting["gradients"] == plain["gradients"] and waiting["parameters"] == plain["parameters"]
    both = (model, model | {"offload": "none"})
    (cpu,), (same,) = (workers(recipe(model=each), SMALL, device="cpu", threads=1) for each in both)
    assert cpu == same


def test_weights_that_wait_on_the_host_are_gathered_by_layers() -> None:
    spread = {"cluster": {"ray": "auto"}, "algorithm": {"name": "ppo"}}
    learner, engine = workers(recipe(model={"offload": "weights"}, **spread), SMALL, device="cuda")
    parts = learner.phases["update"]
    assert (parts["parameters"], parts["moments"]) == (0, 0)
    # As on one of several ranks: what is outside of layers, of the model at work and of the reference, and two layers
    # with their gradients. At the embedding its gradient waits in a buffer, and whole, and once more for the reduction.
    assert parts["gathered layers"] == 4 * (2 * 24 + 4 * 100)
    assert parts["gradients"] <= 4 * (2 * 24 + 20)
    plain, same = workers(recipe(**spread), SMALL, device="cuda")
    assert engine == same
    assert learner.peak < plain.peak - 12 * (ALL + CRITIC)


def test_totals_are_sums() -> None:
    for phases in memory(recipe(algorithm={"name": "ppo"}), SMALL).values():
        assert set(phases) == {"rollout", "score", "update", "weight sync"}
        for parts in phases.values():
            assert parts["total"] == pytest.approx(sum(value for name, value in parts.items() if name != "total"))


@pytest.mark.parametrize(
    ("settings", "tokens", "parts"),
    [
        ({"micro_batch_tokens": 100}, 100, 4),  # two sequences at once
        ({"micro_batch_tokens": 40}, 50, 8),  # one, however long
        ({"micro_batch_tokens": 1000}, 400, 1),  # all of the minibatch
    ],
)
def test_what_is_computed_at_once(settings: dict[str, int], tokens: int, parts: int) -> None:
    made = recipe(train={"minibatch_size": 8} | settings)
    load = load_of(made, way_of(made, SMALL, "cuda"), models_of(made))
    assert (load.tokens, load.parts) == (tokens, parts)


def test_lanes_and_shared_prompts_on_a_cpu() -> None:
    made = recipe(train={"minibatch_size": 8, "micro_batch_tokens": 1000})
    shape = replace(SMALL, hidden=32, heads=2, kv_heads=2, head_dim=16, intermediate=48)
    way = way_of(made, shape, "cpu", threads=2)
    assert (way.kernels, way.fused, way.cpu_threads) == (True, True, 2)
    # Each lane has four answers to one prompt.
    assert load_of(made, way, models_of(made)).tokens == 20 + 4 * 30


def test_memory_follows_the_micro_batch() -> None:
    few, many = (
        planned(recipe(train={"minibatch_size": 8, "micro_batch_tokens": tokens}), replace(SMALL, layers=40))
        for tokens in (100, 400)
    )
    assert 4 * few.phases["update"]["activations"] == pytest.approx(many.phases["update"]["activations"])
    assert many.peak > few.peak
    assert many.peak == sum(many.phases[many.peak_phase].values())
    assert many.fits(2 * many.peak) and not many.fits(many.peak)


def test_an_engine_that_sleeps_takes_nothing_while_the_learner_works() -> None:
    engine = {"name": "vllm", "max_length": 50}
    awake = planned(recipe(engine=engine), memory=GIB)
    asleep = planned(recipe(engine={**engine, "sleep": True}), memory=GIB)
    held = {"engine copy", "KV cache", "workspace"}
    for phase in ("score", "update"):
        assert {"engine copy", "KV cache"} <= awake.phases[phase].keys()
        assert not {"engine copy", "KV cache"} & asleep.phases[phase].keys()
        assert {name: size for name, size in awake.phases[phase].items() if name not in held} == {
            name: size for name, size in asleep.phases[phase].items() if name not in held
        }
    for phase in ("rollout", "weight sync"):
        assert asleep.phases[phase] == awake.phases[phase]


def test_a_colocated_pair_is_two_processes_on_one_gpu() -> None:
    engine = {"name": "vllm", "max_length": 50, "sleep": True}
    cluster = {"ray": "auto", "learners": 1, "engines": 1, "colocated": True}
    pair, alone = planned(recipe(engine=engine, cluster=cluster)), planned(recipe(engine=engine))
    assert pair.role == "pair"
    for phase, parts in pair.phases.items():
        assert parts == {**alone.phases[phase], "context": 2 * GIB}


@pytest.mark.parametrize("vocabulary", [5, 50_000_000], ids=["small", "large"])
def test_weights_that_are_sent_take_chunks_at_both_ends(vocabulary: int) -> None:
    """256 MiB and the largest weight, twice; in a pair one with room for the largest, and a copy of it."""
    shape = replace(SMALL, vocab=vocabulary)
    engine = {"name": "vllm", "max_length": 50, "sleep": True}
    spread = {"ray": "auto", "learners": 1, "engines": 1}

    def sync_weights(**cluster: Any) -> list[float]:
        made = recipe(engine=engine, cluster={**spread, **cluster})
        return [each.phases["weight sync"]["workspace"] for each in workers(made, shape, device="cuda")]

    chunk, largest = 256 << 20, 4 * shape.head
    for before, after in zip(sync_weights(), sync_weights(transfer="direct"), strict=True):
        assert after - before == 2 * (chunk + largest)
    (before,), (after,) = sync_weights(colocated=True), sync_weights(colocated=True, transfer="direct")
    assert after - before == 2 * max(chunk, largest)
