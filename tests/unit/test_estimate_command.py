"""`simplerl plan`: GPUs by name, placements, suggested changes, estimated times."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from simplerl.cli.main import run
from simplerl.config import Recipe, load_recipe
from simplerl.environment import GIB
from simplerl.errors import ConfigError
from simplerl.estimate.changes import fewest_gpus, suggest_changes
from simplerl.estimate.hardware import GPUS, Hardware, parse_hardware
from simplerl.estimate.placement import Placement, best_placement
from simplerl.estimate.shapes import KNOWN
from simplerl.estimate.times import MeanTokens, mean_tokens, step_seconds

pytestmark = pytest.mark.unit

H100 = Hardware(GPUS["H100"], 1)
LARGE, SMALL = KNOWN["Qwen2.5-7B"], KNOWN["Qwen2.5-0.5B"]


def zoo(*settings: str) -> Recipe:
    return load_recipe("zoo-grpo-qwen2.5-7b", ["engine.name=embedded", *settings])


def place(recipe: Recipe, hardware: Hardware) -> Placement:
    return best_placement(recipe, LARGE, hardware, mean_tokens(recipe))


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nodes", "count", "name"),
    [
        ("8xH100", 4, 32, "H100"),
        ("h100", 1, 1, "H100"),
        ("2 x A100-80GB", 1, 2, "A100"),
        ("4xRTX 4090", 1, 4, "RTX4090"),
    ],
)
def test_gpus_by_name(text: str, nodes: int, count: int, name: str) -> None:
    hardware = parse_hardware(text, nodes)
    assert (hardware.count, hardware.gpu.name) == (count, name)


def test_the_error_for_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU 'H1000'; did you mean H100\? Known: H100, H200, .*8xH100"):
        parse_hardware("8xH1000")


@pytest.mark.parametrize(("text", "nodes"), [("0xH100", 1), ("8xH100", 0), ("8xH100", -1)])
def test_no_gpus_are_an_error(text: str, nodes: int) -> None:
    with pytest.raises(ConfigError, match="both counts must be at least 1"):
        parse_hardware(text, nodes)


def test_memory_is_what_the_driver_reports() -> None:
    assert GPUS["H100"].memory / GIB == pytest.approx(79.65, abs=0.01)


# --- placements -------------------------------------------------------------------------------------------------------


def test_one_gpu_does_everything() -> None:
    found = place(zoo("engine.max_batch=16"), H100)
    assert (found.single_process, found.settings, found.fits) == (True, (), False)
    assert [worker.role for worker in found.workers] == ["all"]


def test_several_gpus_are_shared_out_for_the_shortest_step() -> None:
    hardware = parse_hardware("8xH100", 2)
    recipe = zoo("engine.max_batch=64")
    found = place(recipe, hardware)
    assert found.fits
    assert found.learners + found.engines == 16
    assert found.settings[0] == "cluster.ray=auto"
    for learners in range(1, 16):
        settings = ["cluster.ray=auto", f"cluster.learners={learners}", f"cluster.engines={16 - learners}"]
        other = place(zoo("engine.max_batch=64", *settings), hardware)
        assert not other.fits or other.seconds.step >= found.seconds.step


def test_a_recipe_that_asks_for_more_gpus_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.learners=4 and cluster\.engines=4 need 8 GPUs, .* give 4"):
        place(zoo("cluster.ray=auto", "cluster.learners=4", "cluster.engines=4"), parse_hardware("4xH100"))


# --- suggested changes ------------------------------------------------------------------------------------------------


def test_changes_are_suggested_for_a_recipe_that_does_not_fit() -> None:
    recipe = zoo("model.gradient_checkpointing=false", "model.dtype=float32", "model.attention=sdpa")
    found = place(recipe, H100)
    tried = suggest_changes(recipe, found, LARGE, H100, mean_tokens(recipe))
    settings = [each.settings for each in tried]
    assert ("model.dtype=bfloat16",) in settings
    assert ("model.lora.rank=16",) in settings
    assert all(each.peak < found.largest_worker.peak for each in tried)
    assert any(each.placement.fits for each in tried)


def test_several_changes_are_combined_if_no_single_one_is_enough() -> None:
    recipe, hardware = load_recipe("simplerl-zero-qwen2.5-math-7b"), parse_hardware("4xH100")
    found = place(recipe, hardware)
    tried = suggest_changes(recipe, found, LARGE, hardware, mean_tokens(recipe))
    assert [each.reason for each in tried if each.placement.fits] == ["several changes together"]


def test_one_gpu_is_enough_with_everything_offloaded() -> None:
    """Actor and critic 4 + 8 + 4 bytes a parameter, the reference 4; and one micro-batch's activations."""
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    found = place(recipe, H100)
    tried = suggest_changes(recipe, found, LARGE, H100, mean_tokens(recipe))
    fitting = [each for each in tried if each.placement.fits]
    assert [each.settings for each in fitting] == [
        (
            "cluster.ray=auto", "cluster.colocated=true", "engine.name=vllm", "engine.gpu_memory=0.8",
            "engine.sleep=true", "model.offload=all",
        )
    ]  # fmt: skip
    weights = 20 * LARGE.parameters + 16 * LARGE.critic_parameters
    checkpoints = 4 * LARGE.hidden * (LARGE.layers * recipe.train.micro_batch_tokens)
    assert weights + checkpoints < fitting[0].placement.host_bytes < weights + 2 * checkpoints
    assert found.host_bytes == 0
    only = place(load_recipe("simplerl-zero-qwen2.5-math-7b", fitting[0].settings), H100)
    assert only.host_bytes == fitting[0].placement.host_bytes
    eight = next(each for each in tried if "actor.name=adamw-8bit" in each.settings)
    assert eight.settings == ("actor.name=adamw-8bit", "critic.name=adamw-8bit") and not eight.placement.fits


def test_suggested_settings_give_the_suggested_placement() -> None:
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    hardware = parse_hardware("8xH100", 4)
    found = best_placement(recipe, LARGE, hardware, mean_tokens(recipe))
    first = next(
        each for each in suggest_changes(recipe, found, LARGE, hardware, mean_tokens(recipe)) if each.placement.fits
    )
    again = load_recipe("simplerl-zero-qwen2.5-math-7b", [*first.settings, *first.placement.settings])
    assert best_placement(again, LARGE, hardware, mean_tokens(again)).seconds == first.placement.seconds


def test_changes_are_suggested_even_if_none_is_enough() -> None:
    tiny = Hardware(replace(GPUS["L4"], mib=1024), 1)
    recipe = zoo()
    found = place(recipe, tiny)
    tried = suggest_changes(recipe, found, LARGE, tiny, mean_tokens(recipe))
    assert tried and not any(each.placement.fits for each in tried)


def test_the_fewest_gpus() -> None:
    recipe = zoo()
    found = fewest_gpus(recipe, LARGE, H100, mean_tokens(recipe))
    assert found is not None
    more, change = found
    assert more.count > 1 and change.placement.fits
    assert fewest_gpus(recipe, LARGE, Hardware(replace(GPUS["L4"], mib=1024), 1), mean_tokens(recipe)) is None


# --- times ------------------------------------------------------------------------------------------------------------


def test_decoding_reads_weights_and_caches() -> None:
    # Two responses of 100 tokens to a prompt of one. Weights of Qwen2.5-0.5B in 2 bytes: 24 layers of 14,909,440 and a
    # head of 151,936 x 896. Cache: 2 rows x 51 tokens on average x 24 layers x 2 x 128 numbers of 2 bytes. Together
    # 989,175,808 bytes at 70 % of 3.35 TB/s: 0.42182 ms, and 24 x 0.05 ms for launches, a hundred times.
    recipe = load_recipe(
        "zoo-grpo-qwen2.5-0.5b",
        [
            "rollout.prompts_per_step=1",
            "rollout.samples_per_prompt=2",
            "rollout.max_tokens=100",
            "train.minibatch_size=2",
            "data.max_prompt_tokens=1",
            "engine.name=vllm",
        ],
    )
    rollout = step_seconds(recipe, SMALL, H100, MeanTokens(1, 100)).rollout
    assert rollout == pytest.approx(0.162182, abs=1e-5)  # and 2 us for the prompt


def test_longer_responses_cost_more_and_checkpoints_a_forward_pass() -> None:
    recipe = zoo("model.gradient_checkpointing=false")
    short, long = (step_seconds(recipe, LARGE, H100, MeanTokens(200, tokens)) for tokens in (500, 1000))
    assert long.rollout > short.rollout and long.update > short.update
    # A sequence of 700 tokens: 2 x 28 x 233,046,016 weights x 700, and attention 4 x 28 x 3,584 x 700 x 350, together
    # 9.233749e12 operations. 8,192 of them at 35 % of 989e12/s.
    checkpointed = step_seconds(zoo(), LARGE, H100, MeanTokens(200, 500))
    assert checkpointed.update - short.update == pytest.approx(218.5263, rel=1e-5)


def test_the_head_is_float32() -> None:
    # Of 500 response tokens: 2 x 152,064 x 3,584 operations each, at 60 % of 67e12/s for 8,192 sequences: 111.06 s. The
    # layers of the policy take 218.53 s, see above. The reference takes the same.
    recipe = zoo("train.minibatch_size=2048")
    assert step_seconds(recipe, LARGE, H100, MeanTokens(200, 500)).score == pytest.approx(2 * (218.5263 + 111.0601))


def test_a_step_with_one_update_scores_only_the_reference_unless_importance_weights_are_used() -> None:
    one_update = "train.minibatch_size=8192"
    plain = step_seconds(zoo(one_update), LARGE, H100, MeanTokens(200, 500))
    weighted = step_seconds(zoo(one_update, "train.importance=truncated"), LARGE, H100, MeanTokens(200, 500))
    assert plain.score == pytest.approx(218.5263 + 111.0601)
    assert weighted.score == pytest.approx(2 * plain.score)


def test_offloaded_activations_are_copied_to_the_host_and_back() -> None:
    tokens = MeanTokens(200, 500)
    plain, offloaded = (
        step_seconds(zoo("cluster.ray=auto", f"model.offload={what}"), LARGE, H100, tokens)
        for what in ("none", "activations")
    )
    # With checkpoints the inputs of 28 layers, 4 x 3,584 bytes a token: 2.301835e12 bytes, twice, at 25 GB/s.
    assert offloaded.update - plain.update == pytest.approx(184.1468, rel=1e-6)
    assert replace(offloaded, update=plain.update) == plain


def test_offloaded_weights_are_gathered_from_the_host_and_updated_there() -> None:
    tokens = MeanTokens(200, 500)
    plain, offloaded = (
        step_seconds(zoo("cluster.ray=auto", f"model.offload={what}"), LARGE, H100, tokens)
        for what in ("none", "weights")
    )
    # Each of 4 updates moves 28 bytes a weight (gradient 4, weight 8, moments 16) for 7.615617e9 weights: 2.132373 s at
    # 100 GB/s instead of 0.090933 s at 70 % of 3.35 TB/s. Gathering is slower than scoring, but not than the update.
    assert offloaded.update - plain.update == pytest.approx(4 * (2.132373 - 0.090933), rel=1e-6)
    # 8,192 sequences of 700 tokens are 350 micro-batches of 16,384; for each all weights (30.46247e9 bytes at 25 GB/s),
    # of the policy and of the reference.
    assert offloaded.score == pytest.approx(2 * 350 * 1.2184987)


def test_weight_sync_goes_over_the_link_or_through_the_store() -> None:
    """7.6 B weights: 4 bytes twice at 2 GB/s; 2 bytes at half of 450 GB/s, between nodes at 25 GB/s; within a GPU 2
    bytes twice at 70 % of 3.35 TB/s."""
    spread = ("cluster.ray=auto", "cluster.learners=4", "cluster.engines=4", "engine.name=vllm", "engine.sleep=true")
    direct, count = (*spread, "cluster.transfer=direct"), 7_615_616_512

    def weight_sync(*settings: str, nodes: int = 1) -> float:
        return place(zoo(*settings), parse_hardware("8xH100", nodes)).seconds.weight_sync

    assert weight_sync(*spread) == pytest.approx(8 * count / 2e9)
    assert weight_sync(*direct) == pytest.approx(2 * count / (0.5 * 450e9))
    assert weight_sync(*direct, nodes=2) == pytest.approx(2 * count / 25e9)
    assert weight_sync(*direct, "cluster.colocated=true") == pytest.approx(4 * count / (0.7 * 3.35e12))


def test_moments_in_8_bits_keep_one_learner() -> None:
    assert place(zoo("actor.name=adamw-8bit"), parse_hardware("8xH100")).learners == 1


def test_mean_lengths_stay_within_the_limits() -> None:
    recipe = load_recipe("zoo-grpo-qwen2.5-0.5b", ["data.max_prompt_tokens=50"])
    assert mean_tokens(recipe) == MeanTokens(50, 2048)
    assert mean_tokens(recipe, 10**6) == MeanTokens(50, 8192)


# --- the command ------------------------------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_published_run_on_its_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "simplerl-zero-qwen2.5-math-7b", "--gpus", "8xH100", "--nodes", "4").splitlines()
    assert lines[0] == "simplerl-zero-qwen2.5-math-7b on 4 nodes of 8 x H100: does NOT fit"
    assert lines[1].startswith("highest peak: 84.1 GiB on an engine's GPU, in rollout; 95% of the GPU's 79.6 GiB are")
    assert lines[2].startswith("placement: 5 learners and 27 engines (--set cluster.ray=auto --set cluster.learners=5")
    assert "--set engine.name=embedded --set engine.max_batch=128" in [line.strip() for line in lines]
    run_row = next(line.split() for line in lines if line.startswith("  run "))
    assert run_row[-3:] == ["for", "166", "steps"]


def test_one_gpu_that_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "zero-qwen2.5-1.5b-1gpu", "--gpus", "H100", "--mean-tokens", "400")
    lines = text.splitlines()
    assert lines[0] == "zero-qwen2.5-1.5b-1gpu on 1 x H100: fits"
    assert lines[2] == "placement: learner and engine in one process"
    assert "changes to try" not in text
    assert "response 400)" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(printed(capsys, "zero-qwen2.5-1.5b-1gpu", "--gpus", "H100", "--json"))
    assert plan["fits"] and plan["placement"] == {"learners": 1, "engines": 1, "set": []}
    assert plan["memory_gib"]["all"]["update"]["total"] == pytest.approx(plan["peak_gib"]["all"])
    phases = [plan["seconds"][name] for name in ("rollout", "score", "update", "weight_sync")]
    assert plan["seconds"]["step"] == pytest.approx(sum(phases))
    assert plan["changes"] == [] and plan["fewest_gpus"] is None and plan["steps"] == 199


def test_a_model_of_unknown_size_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "quickstart", "--gpus", "H100", "--set", "model.path=somebody/some-model"]) == 2
    assert "model.path=somebody/some-model: the model's sizes are unknown" in capsys.readouterr().err
