"""Memory of a recipe against numbers worked by hand, on a model with a vocabulary of five tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from simplerl.config import Recipe, validate_recipe
from simplerl.environment import GIB
from simplerl.estimate.activations import logits_bytes, saved_per_token
from simplerl.estimate.execution import ExecutionMode, execution_mode, micro_batch_sizes, required_models
from simplerl.estimate.learner_memory import PassMemory
from simplerl.estimate.memory import PURPOSES, Worker, in_gib, learner_memory, memory_gib, workers
from simplerl.estimate.shapes import KNOWN, Shape

pytestmark = pytest.mark.unit

# 5 tokens of 4 numbers, 2 layers, 2 query heads and 1 KV head of 2 numbers, MLP size 3. A layer has 84 weights in
# matrices (q 16, k 8, v 8, output 16, MLP 36), 8 biases and 8 in norms: 100.
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


def estimated(made: Recipe, shape: Shape = SMALL, **options: Any) -> Worker:
    (worker,) = workers(made, shape, device="cuda", **options)
    return worker


def test_bytes_that_a_layer_saves_for_its_gradient() -> None:
    # Two norms (input, normalised, output, scale), q, k, v, attention's output twice, log-sum-exps, and of the MLP the
    # gate, its SiLU, up and their product.
    assert saved_per_token(SMALL, TORCH, 50) == 2 * (3 * 16 + 4) + 4 * (4 + 2 + 2) + 4 * 4 * 2 + 4 * 2 + 4 * 4 * 3


def test_under_autocast_every_matrix_saves_its_own_copy_of_its_input() -> None:
    mode = replace(TORCH, bfloat16=True)
    norms = 2 * (2 * 16 + 4) + 5 * 2 * 4
    assert saved_per_token(SMALL, mode, 50) == norms + 2 * (4 + 2 + 2) + 2 * 2 * 4 + 4 * 2 + 2 * 4 * 3
    # The output matrix reads flash attention's output without a copy, 4 numbers of 2 bytes.
    flash = replace(mode, attention="flash_attention_2")
    assert saved_per_token(SMALL, flash, 50) == norms + 2 * (4 + 2 + 2) + 2 * 4 + 4 * 2 + 2 * 4 * 3


def test_a_fused_layer_saves_less() -> None:
    mode = replace(TORCH, device="cpu", kernels=True)
    assert saved_per_token(SMALL, mode, 50) == 4 * (4 + 4 + 4 + (4 + 4) + 6 + 2 + 2)


def test_frozen_weights_save_no_inputs_but_adapters_do() -> None:
    mode = replace(TORCH, lora_targets=("q_proj",), lora_rank=3)
    # Norms save their input only. The adapter of q reads the first norm's output and gives 3 numbers.
    assert saved_per_token(SMALL, mode, 50) == 2 * 20 + 16 + 32 + 16 + 8 + 4 * 3 * 3 + 4 * 3
    assert mode.adapter_parameters(SMALL) == 2 * 3 * (4 + 4)


def test_many_logits_are_computed_in_chunks() -> None:
    assert logits_bytes(SMALL, 60, entropy_gradient=False) == (4 * 4 * 300, 4 * 4 * 300, 2 * 4 * 300)
    assert logits_bytes(SMALL, 60, entropy_gradient=True) == (4 * 4 * 300, 5 * 4 * 300, 0)
    # 2^26 logits are 441.7 rows of 151,936. Two float32 copies of the 441.
    wide, chunk = replace(SMALL, vocab=151_936), 2 * 4 * 441 * 151_936
    assert logits_bytes(wide, 442, entropy_gradient=False) == (chunk, chunk, 0)
    assert logits_bytes(wide, 10**6, entropy_gradient=True) == (chunk, chunk, 0)
    one = 4 * 441 * 151_936
    assert logits_bytes(wide, 441, entropy_gradient=False) == (4 * one, 4 * one, 2 * one)


def test_weights_moments_and_context_are_always_held() -> None:
    parts = estimated(recipe(algorithm={"name": "ppo"})).phases["score"]
    assert parts["parameters"] == 4 * (ALL + CRITIC + ALL)
    assert parts["moments"] == 8 * (ALL + CRITIC)
    assert parts["engine copy"] == 4 * ALL
    assert parts["context"] == GIB


ONE_UPDATE = {"minibatch_size": 24, "micro_batch_tokens": 100}


@pytest.mark.parametrize(
    "train",
    [
        {"importance": "truncated"},
        {"importance": "masked"},
        {"staleness": 1},
        {"ppo_epochs": 2},
        {"critic_warmup_steps": 1},
    ],
)
def test_a_scoring_pass_takes_one_layers_workspace(train: dict[str, Any]) -> None:
    # Two sequences of 50 at once. A token has the embedding, the layer's input, its middle and a norm's output (4 x 4
    # numbers), q, k and v (8), and three float32 tensors of q's size (12): 36 numbers. Logits come later and are fewer.
    assert estimated(recipe(train=ONE_UPDATE | train)).phases["score"]["workspace"] == 100 * 36 * 4


def test_without_a_scoring_pass_nothing_is_computed_before_the_update() -> None:
    score = estimated(recipe(train=ONE_UPDATE)).phases["score"]
    assert {name for name, size in score.items() if size} == {"parameters", "moments", "context", "engine copy"}


def test_a_scoring_pass_of_the_critic_saves_no_activations() -> None:
    # All 24 sequences of 50 in one micro-batch; the pass needs 36 numbers a token.
    made = recipe(algorithm={"name": "ppo", "kl_coef": 0.0}, train={"minibatch_size": 24, "micro_batch_tokens": 1200})
    score = estimated(made).phases["score"]
    assert score["workspace"] == 1200 * 36 * 4
    assert "activations" not in score


def test_gradients_of_head_and_embedding_exist_twice_while_they_are_summed() -> None:
    # 8 sequences of 50 are four micro-batches of 100. In the last backward pass all gradients are held; a tied head's
    # new one waits in a buffer until the embedding's comes to it.
    def gradients(shape: Shape) -> list[float]:
        learner = learner_memory(recipe(), shape, "cuda")
        return [peak["gradients"] for peak in PassMemory(learner, learner.mode, critic=False).peaks()]

    assert gradients(SMALL) == [4 * (ALL + new) for new in (0, 20, 20, 40)]
    assert gradients(replace(SMALL, tied=False)) == [4 * (ALL + 20 + new) for new in (0, 20, 0, 20)]


def test_of_an_actor_with_adapters_only_these_have_gradients_and_moments() -> None:
    made = recipe(model={"lora": {"rank": 3}}, algorithm={"name": "grpo", "kl_loss_coef": 0.1})
    adapters = 2 * 3 * ((4 + 4) + (4 + 2) + (4 + 2) + (4 + 4) + 3 * (4 + 3))
    parts = estimated(made).phases["update"]
    assert parts["parameters"] == 4 * (ALL + adapters)
    assert (parts["moments"], parts["gradients"]) == (8 * adapters, 4 * adapters)
    # Weight sync merges them: the product of an adapter and the merged weight, at most 4 x 4 numbers each.
    assert estimated(made).phases["weight sync"]["workspace"] == 2 * 4 * 16


def test_all_weights_of_a_critic_are_trained_beside_an_actor_with_adapters() -> None:
    parts = estimated(recipe(model={"lora": {"rank": 3}}, algorithm={"name": "ppo", "kl_coef": 0.0})).phases["update"]
    assert parts["moments"] == 8 * (2 * 3 * (8 + 6 + 6 + 8 + 3 * 7) + CRITIC)


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
    assert estimated(made, wide).phases["update"]["moments"] == large + 8 * rest + 8 * critic
    both = recipe(
        actor={"learning_rate": 1e-6, "name": "adamw-8bit"},
        critic={"learning_rate": 1e-6, "name": "adamw-8bit"},
        algorithm={"name": "ppo", "kl_coef": 0.0},
    )
    head = 2 * 6400 + 8 * 25
    assert estimated(both, wide).phases["score"]["moments"] == 2 * large - head + 8 * (2 * rest + 64 + 1)


def test_moments_of_muon() -> None:
    # 84 weights of a layer are in matrices and have one number each; all other tensors have AdamW's two.
    made = recipe(actor={"name": "muon"})
    assert estimated(made).phases["update"]["moments"] == 4 * 2 * 84 + 8 * (ALL - 2 * 84)
    made = recipe(actor={"name": "muon"}, model={"lora": {"rank": 3}})
    adapters = execution_mode(made, SMALL, "cuda").adapter_parameters(SMALL)
    assert estimated(made).phases["update"]["moments"] == 4 * adapters


@pytest.mark.parametrize(
    ("name", "actor", "critic"),
    # A critic has no untied head, of 152,064 x 3,584, and a value head of 3,584 + 1 or 896 + 1.
    [("Qwen2.5-7B", 7_615_616_512, 7_070_622_721), ("Qwen2.5-0.5B", 494_032_768, 494_033_665)],
)
def test_trained_tensors_are_all_parameters(name: str, actor: int, critic: int) -> None:
    trained = learner_memory(recipe(algorithm={"name": "ppo"}), KNOWN[name], "cuda").trained
    assert {model: sum(tensor.numel for tensor in tensors) for model, tensors in trained.items()} == {
        "actor": actor,
        "critic": critic,
    }


def test_the_cache_grows_by_half() -> None:
    # Room for 20 + 30 from the start, rounded up to 56 keys; 10 rows of 2 layers x (2 keys + 2 values).
    assert estimated(recipe()).phases["rollout"]["KV cache"] == 10 * 56 * 8 * 4
    # From 20 + 256, rounded up to 280, to 420, rounded up to 424.
    longer = recipe(rollout={"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 300})
    assert estimated(longer).phases["rollout"]["KV cache"] == 10 * 424 * 8 * 4
    phases = estimated(recipe()).phases
    assert all("KV cache" not in phases[name] for name in ("score", "update", "weight sync"))


def test_cpu_threads_of_the_engine_share_its_batch() -> None:
    # 10 rows over 4 threads are 2 each; a cache of 56 keys, see above.
    engine = {"name": "embedded", "max_batch": 10, "cpu_threads": 4}
    (cpu,) = workers(recipe(engine=engine), SMALL, device="cpu", threads=1)
    assert cpu.phases["rollout"]["KV cache"] == 8 * 56 * 8 * 4


def test_a_cpu_keeps_its_cache_and_vllm_its_share() -> None:
    (cpu,) = workers(recipe(), SMALL, device="cpu", threads=1)
    assert {phase: parts["KV cache"] for phase, parts in cpu.phases.items()} == dict.fromkeys(
        ("rollout", "score", "update", "weight sync"), 10 * 56 * 8 * 4
    )
    assert "context" not in cpu.phases["update"]
    vllm = estimated(recipe(engine={"name": "vllm", "gpu_memory": 0.5}), memory=80 * GIB)
    for phase in ("rollout", "update"):
        parts = vllm.phases[phase]
        held = parts["KV cache"] + parts["engine copy"] + (parts["workspace"] if phase == "rollout" else 0)
        assert held == pytest.approx(40 * GIB)


def test_an_engine_in_bfloat16_also_has_its_head_in_float32() -> None:
    half = estimated(recipe(model={"dtype": "bfloat16"}))
    assert half.phases["rollout"]["engine copy"] == 2 * ALL + 4 * 20
    # In a forward pass autocast caches a cast copy of every matrix.
    assert half.phases["update"]["cast weights"] == 2 * 2 * 84


def test_checkpoints_save_the_inputs_of_layers_and_one_layer() -> None:
    # Of two sequences of 50: a layer's 224 bytes a token (see above) or its input of 16, the last norm's 36, and the
    # states of 60 response tokens. The peak is at the last layer, which has been recomputed.
    plain, less = (
        estimated(recipe(model={"gradient_checkpointing": on}), replace(SMALL, layers=40)).phases["update"]
        for on in (False, True)
    )
    assert plain["activations"] == 100 * (40 * 224 + 36) + 60 * 16
    assert less["activations"] == 100 * (40 * 16 + 224 + 36) + 60 * 16


def test_sharded_learners() -> None:
    spread = recipe(cluster={"ray": "auto", "learners": 4, "engines": 2}, algorithm={"name": "ppo"})
    learner, engine = workers(spread, SMALL, device="cuda")
    assert (learner.role, engine.role) == ("learner", "engine")
    parts = learner.phases["update"]
    assert parts["parameters"] == ALL + CRITIC + ALL
    assert parts["moments"] == 2 * (ALL + CRITIC)
    # Parameters outside of layers, of the model in use and of the reference; two layers and their gradients.
    assert parts["gathered layers"] == 4 * (2 * 24 + 4 * 100)
    assert "parameters" not in engine.phases["rollout"]
    assert engine.phases["rollout"]["KV cache"] == 10 * 56 * 8 * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloaded_activations_leave_one_layer(checkpointing: bool) -> None:
    model = {"offload": "activations", "gradient_checkpointing": checkpointing}
    offloaded = estimated(recipe(model=model), replace(SMALL, layers=40)).phases["update"]
    # Of two sequences of 50: one layer that is back from the host, and the states of 60 response tokens for the head.
    assert offloaded["activations"] == 100 * 224 + 60 * 16
    plain = estimated(recipe(), replace(SMALL, layers=40)).phases["update"]
    assert offloaded["gradients"] == plain["gradients"] and offloaded["parameters"] == plain["parameters"]
    both = (model, model | {"offload": "none"})
    (cpu,), (same,) = (workers(recipe(model=each), SMALL, device="cpu", threads=1) for each in both)
    assert cpu == same


def test_offloaded_weights_are_gathered_layer_by_layer() -> None:
    spread = {"cluster": {"ray": "auto"}, "algorithm": {"name": "ppo"}}
    learner, engine = workers(recipe(model={"offload": "weights"}, **spread), SMALL, device="cuda")
    parts = learner.phases["update"]
    assert (parts["parameters"], parts["moments"]) == (0, 0)
    # As on one of several ranks: parameters outside of layers, of the model in use and of the reference, and two layers
    # with their gradients. The peak is at the actor's last layer, while the tied head's gradient is in a buffer.
    assert parts["gathered layers"] == 4 * (2 * 24 + 4 * 100)
    assert parts["gradients"] == 4 * 20
    plain, same = workers(recipe(**spread), SMALL, device="cuda")
    assert engine == same
    assert learner.peak < plain.peak - 12 * (ALL + CRITIC)


def test_a_breakdown_in_gib_leaves_out_zeros_and_has_a_total() -> None:
    breakdown = {"parameters": 3.0 * 2**30, "moments": 0.0, "logits": 2.0**29}
    assert in_gib(breakdown) == {"parameters": 3.0, "logits": 0.5, "total": 3.5}


def test_a_worker_is_as_large_as_its_largest_phase() -> None:
    worker = Worker("all", {"rollout": {"KV cache": 60.0, "workspace": 20.0}, "update": {"gradients": 95.0}})
    assert (worker.peak, worker.peak_phase) == (95.0, "update")
    # 95 % of the memory may be used.
    assert worker.fits(100.0) and not worker.fits(99.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_part_of_an_estimate_is_explained(device: Literal["cpu", "cuda"]) -> None:
    spread = {"ray": "auto", "learners": 2, "engines": 2}
    half = {"dtype": "bfloat16"}
    found = [
        *workers(recipe(algorithm={"name": "ppo"}, model=half), SMALL, device=device),
        *workers(recipe(algorithm={"name": "ppo"}, cluster=spread), SMALL, device=device),
    ]
    parts = {name for worker in found for phase in worker.phases.values() for name in phase}
    assert parts == PURPOSES.keys() - ({"context"} if device == "cpu" else set())


def test_memory_is_given_for_every_phase() -> None:
    assert {role: list(phases) for role, phases in memory_gib(recipe(), SMALL).items()} == {
        "all": ["rollout", "score", "update", "weight sync"]
    }


@pytest.mark.parametrize(
    ("settings", "tokens", "per_update"),
    [
        ({"micro_batch_tokens": 100}, 100, 4),  # two sequences at once
        ({"micro_batch_tokens": 40}, 50, 8),  # one sequence, which is longer than the limit
        ({"micro_batch_tokens": 1000}, 400, 1),  # all of the minibatch
    ],
)
def test_sizes_of_micro_batches(settings: dict[str, int], tokens: int, per_update: int) -> None:
    made = recipe(train={"minibatch_size": 8} | settings)
    sizes = micro_batch_sizes(made, execution_mode(made, SMALL, "cuda"), required_models(made))
    assert (sizes.tokens, sizes.per_update) == (tokens, per_update)


def test_threads_and_shared_prompts_on_a_cpu() -> None:
    made = recipe(train={"minibatch_size": 8, "micro_batch_tokens": 1000})
    shape = replace(SMALL, hidden=32, heads=2, kv_heads=2, head_dim=16, intermediate=48)
    mode = execution_mode(made, shape, "cpu", threads=2)
    assert (mode.kernels, mode.fused, mode.cpu_threads) == (True, True, 2)
    # Each thread has the four responses to one prompt.
    assert micro_batch_sizes(made, mode, required_models(made)).tokens == 20 + 4 * 30


def test_memory_follows_the_micro_batch() -> None:
    few, many = (
        estimated(recipe(train={"minibatch_size": 8, "micro_batch_tokens": tokens}), replace(SMALL, layers=40))
        for tokens in (100, 400)
    )
    assert 4 * few.phases["update"]["activations"] == many.phases["update"]["activations"]
    assert many.peak > few.peak


def test_an_engine_that_sleeps_takes_nothing_while_the_learner_works() -> None:
    engine = {"name": "vllm", "max_length": 50}
    awake = estimated(recipe(engine=engine), memory=GIB)
    asleep = estimated(recipe(engine={**engine, "sleep": True}), memory=GIB)
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
    pair, alone = estimated(recipe(engine=engine, cluster=cluster)), estimated(recipe(engine=engine))
    assert pair.role == "pair"
    for phase, parts in pair.phases.items():
        assert parts == {**alone.phases[phase], "context": 2 * GIB}


@pytest.mark.parametrize("vocabulary", [5, 50_000_000], ids=["small", "large"])
def test_weights_that_are_sent_take_chunks_at_both_ends(vocabulary: int) -> None:
    """NCCL has two chunks of 256 MiB and the largest weight. A pair has one with room for it, and a copy of it."""
    shape = replace(SMALL, vocab=vocabulary)
    engine = {"name": "vllm", "max_length": 50, "sleep": True}
    spread = {"ray": "auto", "learners": 1, "engines": 1}

    def weight_sync(**cluster: Any) -> list[float]:
        made = recipe(engine=engine, cluster={**spread, **cluster})
        return [each.phases["weight sync"]["workspace"] for each in workers(made, shape, device="cuda")]

    chunk, largest = 256 << 20, 4 * 4 * vocabulary
    for before, after in zip(weight_sync(), weight_sync(transfer="direct"), strict=True):
        assert after - before == 2 * (chunk + largest)
    (before,), (after,) = weight_sync(colocated=True), weight_sync(colocated=True, transfer="direct")
    assert after - before == 2 * max(chunk, largest)
