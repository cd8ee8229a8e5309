"""Every speed-up keeps the numbers: kernels, shared prompts, threads, one forward pass instead of two."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from simplerl.algorithms.grpo import GRPO
from simplerl.algorithms.grpo import Config as GRPOConfig
from simplerl.algorithms.ppo import PPO, Config
from simplerl.batch.batch import collate
from simplerl.batch.layouts import Packed, Padded, Shared
from simplerl.config import validate_recipe
from simplerl.cpu import FusedDecoder
from simplerl.engines.base import generate
from simplerl.errors import EngineError
from simplerl.learner.learner import LocalLearner
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Verdict

sys.path.insert(0, str(Path(__file__).parents[1]))

import engine_models as tiny

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
PLAIN = {"model": {"kernels": "torch"}, "train": {"packing": False, "cpu_threads": 1}}
FAST = {
    "kernels, padded": {"train": {"packing": False, "cpu_threads": 1}},
    "kernels, shared prompts": {"train": {"cpu_threads": 1}},
    "kernels, shared prompts, two threads": {"train": {"cpu_threads": 2}},
    "kernels, checkpointing, three threads": {"model": {"gradient_checkpointing": True}, "train": {"cpu_threads": 3}},
    "torch, packed, two threads": {"model": {"kernels": "torch"}, "train": {"packing": True, "cpu_threads": 2}},
}


@pytest.fixture(scope="module", params=["qwen2", "llama", "mistral"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    made = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    }[request.param]()
    path = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(path)
    return path


def groups_of(number=5, size=4, seed=0):
    """Responses of many lengths, some of one token, to prompts of many lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    groups = []
    for index, length in enumerate(draw(1, 60, number)):
        prompt = Prompt(Problem(f"p{index}", "q", "1"), "q", tuple(draw(3, 101, length)))
        rollouts = [
            Rollout.single_turn("r", prompt, tuple(draw(3, 101, n)), (-3.0,) * n, "", "stop", 0)
            for n in draw(1, 70, size)
        ]
        groups.append([GradedRollout(r, Verdict("correct"), float(draw(-1, 2, 1)[0])) for r in rollouts])
    return groups


BATCH = collate(groups_of())


def make(folder, algorithm="ppo", budget=150, **how):
    table = {
        "model": {"path": str(folder), **how.get("model", {})},
        "data": {"source": "arithmetic"},
        "rollout": {"prompts_per_step": 5, "samples_per_prompt": 4, "temperature": 0.8, "max_tokens": 80},
        "algorithm": {"name": algorithm, "kl_loss_coef": 0.1, "entropy_coef": 0.01},
        "train": {"minibatch_size": 20, "micro_batch_tokens": budget, **how.get("train", {})},
    }
    recipe = validate_recipe(table)
    kinds = {"ppo": (PPO, Config), "grpo": (GRPO, GRPOConfig)}
    cls, config = kinds[algorithm]
    chosen = cls(config.model_validate(recipe.algorithm.model_dump()), 80)
    torch.manual_seed(0)
    learner = LocalLearner(recipe, chosen, horizon=10, device=CPU)
    if learner.critic is not None:
        torch.nn.init.normal_(learner.critic.head.weight, std=0.05)
    return learner, chosen


def caught_update(learner, algorithm, credited):
    """Metrics and gradients of one update, caught before any weight moves."""
    caught = {}
    for name, optimiser in learner.optimizers.items():

        def catch(name=name, optimiser=optimiser):
            parameters = optimiser.model.named_parameters()
            caught.update({f"{name}/{k}": p.grad.clone() for k, p in parameters if p.grad is not None})
            return torch.tensor(1.0)

        optimiser.clip_gradients, optimiser.step = catch, lambda: None
    return learner.update(credited, algorithm), caught


def moved(credited):
    """As if the policy had moved since: ratios other than 1."""
    old = credited.old_logprobs
    return replace(credited, old_logprobs=old + 0.1 * torch.sin(torch.arange(len(old))))


@pytest.mark.parametrize("how", FAST.values(), ids=FAST.keys())
def test_scores_losses_and_gradients_are_those_of_the_plain_path(folder, how):
    results = []
    for each in (PLAIN, how):
        learner, algorithm = make(folder, **each)
        scored = learner.score(BATCH)
        credited, _ = algorithm.compute_advantages(scored)
        results.append((scored, *caught_update(learner, algorithm, moved(credited))))
    (plain, metrics, expected), (fast, fast_metrics, found) = results
    for name in ("old_logprobs", "ref_logprobs", "values"):
        assert torch.allclose(getattr(fast, name), getattr(plain, name), atol=1e-5), name
    assert fast_metrics == pytest.approx(metrics, abs=2e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2


def test_the_kernels_and_shared_prompts_are_what_runs_by_default(folder):
    learner, _ = make(folder)
    assert learner.fused and learner.layout is Shared and learner.cpu_threads.count == min(8, torch.get_num_threads())
    plain, _ = make(folder, **PLAIN)
    assert not plain.fused and plain.layout is Padded
    packed, _ = make(folder, model={"kernels": "torch"}, train={"packing": True})
    assert packed.layout is Packed


@pytest.mark.parametrize("cpu_threads", [1, 2])
def test_the_same_update_twice_is_the_same_bit_for_bit(folder, cpu_threads):
    """Which thread runs what, and in which order gradients are added, is never a matter of timing."""
    results = []
    for _ in range(2):
        learner, algorithm = make(folder, train={"cpu_threads": cpu_threads})
        credited, _ = algorithm.compute_advantages(learner.score(BATCH))
        results.append(caught_update(learner, algorithm, credited))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())


def test_bfloat16_products_stay_near_float32(folder):
    """Autocast around the kernels: the same direction, the same size."""
    results = []
    for dtype in ("float32", "bfloat16"):
        learner, algorithm = make(folder, model={"dtype": dtype}, train={"cpu_threads": 2})
        credited, _ = algorithm.compute_advantages(learner.score(BATCH))
        results.append(torch.cat([g.flatten() for g in caught_update(learner, algorithm, credited)[1].values()]))
    exact, rough = results
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.99
    assert 0.9 < rough.norm() / exact.norm() < 1.1


def test_adapters_learn_through_the_kernels(folder):
    pytest.importorskip("peft")
    results = []
    for how in (PLAIN, {"train": {"cpu_threads": 2}}):
        lora = {"lora": {"rank": 4}}
        learner, algorithm = make(folder, "grpo", model={**how.get("model", {}), **lora}, train=how["train"])
        for name, parameter in learner.actor.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        credited, _ = algorithm.compute_advantages(learner.score(BATCH))
        results.append(caught_update(learner, algorithm, moved(credited))[1])
    expected, found = results
    assert expected.keys() == found.keys() and all("lora" in name for name in found)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name


def test_the_reference_of_adapters_is_the_model_without_them(folder):
    pytest.importorskip("peft")
    learner, algorithm = make(folder, "grpo", model={"lora": {"rank": 4}})
    assert learner.reference is None
    before = learner.score(BATCH)
    assert torch.equal(before.ref_logprobs, before.old_logprobs), "adapters change nothing at first"
    trained = [name for name, parameter in learner.actor.named_parameters() if parameter.requires_grad]
    credited, _ = algorithm.compute_advantages(before)
    learner.update(credited, algorithm)
    with torch.no_grad():
        for name, parameter in learner.actor.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    after = learner.score(BATCH)
    assert torch.equal(after.ref_logprobs, before.ref_logprobs)
    assert not torch.allclose(after.old_logprobs, before.old_logprobs, atol=1e-4)
    assert trained == [name for name, parameter in learner.actor.named_parameters() if parameter.requires_grad]


def test_a_small_batch_is_shared_by_the_threads(folder):
    """With the default budget all of it would be one micro-batch, and one thread would do everything."""
    learner, _ = make(folder, budget=10_000, train={"cpu_threads": 2})
    sizes = [Shared.tokens(BATCH.select(rows)) for rows in learner._split(BATCH)]
    assert len(sizes) == 2
    assert max(sizes) < 0.65 * sum(sizes)


# --- one forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "budget"), [("grpo", 150), ("ppo", 150), ("ppo", 10_000)])
def test_an_only_update_gives_the_old_log_probs_itself(folder, algorithm, budget):
    results = []
    for own in (True, False):
        learner, chosen = make(folder, algorithm, budget=budget)
        if algorithm == "ppo":
            chosen.config = chosen.config.model_copy(update={"kl_coef": 0.0})
        scored = learner.score(BATCH, old_logprobs=own)
        assert (scored.old_logprobs is None) is not own
        credited, _ = chosen.compute_advantages(scored)
        results.append(caught_update(learner, chosen, credited))
    (metrics, expected), (own_metrics, found) = results
    extra = {"mismatch/mean", "mismatch/max", "mismatch/kl", "mismatch/beyond", "kl/reference"}
    assert own_metrics.keys() - metrics.keys() == extra
    assert {k: v for k, v in own_metrics.items() if k not in extra} == pytest.approx(metrics, abs=2e-5)
    assert own_metrics["ratio/max"] == 0
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_a_refusing_check_comes_before_any_weight_moves(folder):
    learner, algorithm = make(folder, "grpo")
    credited, _ = algorithm.compute_advantages(learner.score(BATCH, old_logprobs=False))
    before = {name: p.clone() for name, p in learner.actor.named_parameters()}
    seen = []

    def refuse(metrics):
        seen.append(metrics["mismatch/mean"])
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        learner.update(credited, algorithm, check=refuse)
    assert all(torch.equal(before[name], p) for name, p in learner.actor.named_parameters())
    expected = (learner.logprobs(BATCH) - BATCH.sampled_logprobs).abs().mean().item()
    assert seen == [pytest.approx(expected, abs=1e-5)]


# --- shared prompts ---------------------------------------------------------------------------------------------------


def test_a_shared_prompt_stands_once_and_its_responses_are_predicted_from_it():
    """Two answers (10 11), (12) to the prompt (1 2 3), one (14) to (4)."""

    def graded(prompt, ids, name):
        rollout = Rollout.single_turn(
            "r", Prompt(Problem(name, "q", "1"), "q", prompt), ids, (-1.0,) * len(ids), "", "stop", 0
        )
        return GradedRollout(rollout, Verdict("correct"), 1.0)

    batch = collate(
        [[graded((1, 2, 3), (10, 11), "a"), graded((1, 2, 3), (12,), "a")], [graded((4,), (14,), "b")]]
    ).select(torch.tensor([2, 0, 1]))
    layout = Shared.lay_out(batch)
    assert layout.ids.tolist() == [[1, 2, 3, 4, 14, 10, 11, 12]]
    assert layout.positions.tolist() == [[0, 1, 2, 0, 1, 3, 4, 3]]
    assert layout.targets.tolist() == [14, 10, 11, 12]
    assert layout.logit_positions.tolist() == [3, 2, 5, 2]
    assert layout.segments.tolist() == [[0, 3, 0, 0], [3, 1, 0, 0], [4, 1, 3, 1], [5, 2, 0, 3], [7, 1, 0, 3]]


@pytest.mark.parametrize("budget", [1, 60, 150, 10_000])
def test_packs_hold_every_row_once_keep_the_budget_and_save_prompts(budget):
    packs = Shared.split(BATCH, budget)
    assert sorted(row for pack in packs for row in pack.tolist()) == list(range(len(BATCH)))
    sizes = [Shared.lay_out(BATCH.select(pack)).ids.shape[1] for pack in packs]
    assert all(size <= budget or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    if budget == 10_000:
        prompts = int(BATCH.prompt_lengths.sum()) // 4
        assert sizes == [prompts + int(BATCH.response_lengths.sum())]


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    made = tiny.model("llama", scale=0.15, vocab_size=64, hidden_size=48, num_attention_heads=6, num_hidden_layers=3)
    return tiny.save(made, tmp_path_factory.mktemp("decoded"))


def decode(folder, kernels, cpu_threads, requests):
    from simplerl.engines import embedded

    config = embedded.Config(max_batch=24, cpu_threads=cpu_threads)
    engine = embedded.build(config, folder, tiny.tokenizer(), dtype="float32", device="cpu", kernels=kernels)
    rollouts = generate(engine, requests)
    again = generate(engine, requests)
    engine.close()
    assert rollouts == again
    return rollouts


@pytest.mark.parametrize("cpu_threads", [1, 2, 3])
def test_the_fast_engine_gives_the_simple_one_s_tokens_but_for_ties_of_rounding(decoded, cpu_threads):
    """4,000 tokens from the same random numbers; log-probs to 1e-5 as long as the tokens are the same."""
    ids = tiny.prompts(20, shortest=1, longest=30)
    sampling = ({}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0})
    requests = [
        tiny.request(f"r{i}", ids[i // 4], seed=i, max_tokens=70, **sampling[i % (5 if i < 40 else 1)])
        for i in range(80)
    ]
    simple, fast = decode(decoded, "torch", 1, requests), decode(decoded, "auto", cpu_threads, requests)
    parted = 0
    for one, other in zip(simple, fast, strict=True):
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(one.token_ids))
        parted += one.token_ids != other.token_ids
        assert other.sampled_logprobs[:same] == pytest.approx(one.sampled_logprobs[:same], abs=2e-5)
    assert sum(len(rollout.token_ids) for rollout in simple) > 2000
    assert parted <= 1


def test_a_table_of_angles_is_long_enough_whatever_another_thread_does(decoded):
    """A thread with shorter sequences replaces the shared table as soon as this one has set it."""
    short = torch.zeros(8, 8), torch.zeros(8, 8)

    class Contended(FusedDecoder):
        def __setattr__(self, name, value):
            super().__setattr__(name, short if name == "_cos_sin" and len(value[0]) else value)

    decoder = Contended(tiny.load(decoded), bf16=False)
    cos, sin = decoder._cos_sin_up_to(100)
    assert len(cos) >= 100 and len(sin) >= 100
    assert cos[99, 1].item() == pytest.approx(math.cos(99 * 10_000 ** (-2 / 8)), abs=1e-5)


def test_closing_a_rollout_early_leaves_a_usable_engine(decoded):
    from simplerl.engines import embedded

    config = embedded.Config(max_batch=8, cpu_threads=2)
    engine = embedded.build(config, decoded, tiny.tokenizer(), dtype="float32", device="cpu")
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=60) for i, ids in enumerate(tiny.prompts(20))]
    whole = generate(engine, requests)
    stream = engine.submit(requests)
    next(stream)
    stream.close()
    assert generate(engine, requests) == whole
