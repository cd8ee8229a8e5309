"""`simplerl plan`: GPUs by name, placements, what to change, estimated times."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from simplerl.cli.main import run
from simplerl.config import Recipe, load_recipe
from simplerl.environment import GIB
from simplerl.errors import ConfigError
from simplerl.estimate.changes import changes, enough
from simplerl.estimate.hardware import GPUS, Hardware, parse_hardware
from simplerl.estimate.placement import Placement, best
from simplerl.estimate.shapes import KNOWN
from simplerl.estimate.steps import updates_per_step
from simplerl.estimate.times import BANDWIDTH, HOST, HOST_MEMORY, MFU, Tokens, mean_tokens, seconds

pytestmark = pytest.mark.unit

H100 = Hardware(GPUS["H100"], 1)
LARGE, SMALL = KNOWN["Qwen2.5-7B"], KNOWN["Qwen2.5-0.5B"]


def zoo(*settings: str) -> Recipe:
    return load_recipe("zoo-grpo-qwen2.5-7b", ["engine.name=embedded", *settings])


def where(recipe: Recipe, hardware: Hardware) -> Placement:
    return best(recipe, LARGE, hardware, mean_tokens(recipe))


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


def test_an_unknown_gpu_is_answered_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"no data of a GPU 'H1000'; did you mean H100\? Known: H100, H200, .*8xH100"):
        parse_hardware("8xH1000")


@pytest.mark.parametrize(("text", "nodes"), [("0xH100", 1), ("8xH100", 0), ("8xH100", -1)])
def test_no_gpus_are_an_error(text: str, nodes: int) -> None:
    with pytest.raises(ConfigError, match="both counts are at least 1"):
        parse_hardware(text, nodes)


def test_memory_is_what_the_driver_reports() -> None:
    assert GPUS["H100"].memory / GIB == pytest.approx(79.65, abs=0.01)


# --- placements -------------------------------------------------------------------------------------------------------


def test_one_gpu_does_everything() -> None:
    found = where(zoo("engine.max_batch=16"), H100)
    assert (found.together, found.settings, found.fits) == (True, (), False)
    assert [worker.role for worker in found.workers] == ["all"]


def test_several_gpus_are_shared_out_for_the_shortest_step() -> None:
    hardware = parse_hardware("8xH100", 2)
    recipe = zoo("engine.max_batch=64")
    found = where(recipe, hardware)
    assert found.fits
    assert found.learners + found.engines == 16
    assert found.settings[0] == "cluster.ray=auto"
    for learners in range(1, 16):
        settings = ["cluster.ray=auto", f"cluster.learners={learners}", f"cluster.engines={16 - learners}"]
        other = where(zoo("engine.max_batch=64", *settings), hardware)
        assert not other.fits or other.seconds.step >= found.seconds.step


def test_a_recipe_that_asks_for_more_gpus_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.learners=4 and cluster\.engines=4 need 8 GPUs, .* say 4"):
        where(zoo("cluster.ray=auto", "cluster.learners=4", "cluster.engines=4"), parse_hardware("4xH100"))


# --- what to change ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told_what_to_change() -> None:
    recipe = zoo("model.gradient_checkpointing=false", "model.dtype=float32", "model.attention=sdpa")
    found = where(recipe, H100)
    tried = changes(recipe, found, LARGE, H100, mean_tokens(recipe))
    settings = [each.settings for each in tried]
    assert ("model.dtype=bfloat16",) in settings
    assert ("model.lora.rank=16",) in settings
    assert all(each.peak < found.largest.peak for each in tried)
    assert any(each.placement.fits for each in tried)


def test_where_no_change_is_enough_several_are_joined() -> None:
    recipe, hardware = load_recipe("simplerl-zero-qwen2.5-math-7b"), parse_hardware("4xH100")
    found = where(recipe, hardware)
    tried = changes(recipe, found, LARGE, hardware, mean_tokens(recipe))
    assert [each.why for each in tried if each.placement.fits] == ["together"]


def test_one_gpu_is_enough_where_the_host_has_room() -> None:
    """Actor and critic 4 + 8 + 4 bytes a parameter, the reference 4; and one micro-batch's activations."""
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    found = where(recipe, H100)
    tried = changes(recipe, found, LARGE, H100, mean_tokens(recipe))
    fitting = [each for each in tried if each.placement.fits]
    assert [each.settings for each in fitting] == [
        (
            "cluster.ray=auto", "cluster.colocated=true", "engine.name=vllm", "engine.gpu_memory=0.8",
            "engine.sleep=true", "model.offload=all",
        )
    ]  # fmt: skip
    weights = 20 * LARGE.parameters + 16 * LARGE.critic_parameters
    checkpoints = 4 * LARGE.hidden * (LARGE.layers * recipe.train.micro_batch_tokens)
    assert weights + checkpoints < fitting[0].placement.host < weights + 2 * checkpoints
    assert found.host == 0
    only = where(load_recipe("simplerl-zero-qwen2.5-math-7b", fitting[0].settings), H100)
    assert only.host == fitting[0].placement.host
    eight = next(each for each in tried if "actor.name=adamw-8bit" in each.settings)
    assert eight.settings == ("actor.name=adamw-8bit", "critic.name=adamw-8bit") and not eight.placement.fits


def test_suggested_settings_are_settings() -> None:
    recipe = load_recipe("simplerl-zero-qwen2.5-math-7b")
    hardware = parse_hardware("8xH100", 4)
    found = best(recipe, LARGE, hardware, mean_tokens(recipe))
    first = next(each for each in changes(recipe, found, LARGE, hardware, mean_tokens(recipe)) if each.placement.fits)
    again = load_recipe("simplerl-zero-qwen2.5-math-7b", [*first.settings, *first.placement.settings])
    assert best(again, LARGE, hardware, mean_tokens(again)).seconds == first.placement.seconds


def test_a_recipe_without_any_way_out_says_how_far_each_gets() -> None:
    tiny = Hardware(replace(GPUS["L4"], mib=1024), 1)
    recipe = zoo()
    found = where(recipe, tiny)
    tried = changes(recipe, found, LARGE, tiny, mean_tokens(recipe))
    assert tried and not any(each.placement.fits for each in tried)


def test_the_fewest_gpus_that_do() -> None:
    recipe = zoo()
    found = enough(recipe, LARGE, H100, mean_tokens(recipe))
    assert found is not None
    more, change = found
    assert more.count > 1 and change.placement.fits
    assert enough(recipe, LARGE, Hardware(replace(GPUS["L4"], mib=1024), 1), mean_tokens(recipe)) is None


# --- times ------------------------------------------------------------------------------------------------------------


def test_decoding_alone_reads_weights_and_caches() -> None:
    # One response of 100 tokens to a prompt that costs next to nothing, on a GPU whose kernels start at once.
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
    told = seconds(recipe, SMALL, H100, Tokens(1, 100))
    weights = 2 * (SMALL.layers * SMALL.layer_matrices + SMALL.head)
    cache = 2 * 51 * 2 * SMALL.cache_elements
    assert told.rollout == pytest.approx(100 * ((weights + cache) / (BANDWIDTH * 3.35e12) + 5e-5 * 24), rel=1e-3)


def test_longer_responses_cost_more_and_checkpoints_a_forward_pass() -> None:
    recipe = zoo("model.gradient_checkpointing=false")
    short, long = (seconds(recipe, LARGE, H100, Tokens(200, tokens)) for tokens in (500, 1000))
    assert long.rollout > short.rollout and long.update > short.update
    again = seconds(zoo(), LARGE, H100, Tokens(200, 500))
    tokens, whole = 8192 * 700, 700
    flop = 2 * LARGE.layers * LARGE.layer_matrices * tokens + 4 * LARGE.layers * LARGE.queries * tokens * whole / 2
    assert again.update - short.update == pytest.approx(flop / (MFU * 989e12))


def test_what_waits_on_the_host_takes_the_time_of_its_copies() -> None:
    plain, moved = (zoo("cluster.ray=auto", f"model.offload={what}") for what in ("none", "activations"))
    tokens = Tokens(200, 500)
    before, after = (seconds(each, LARGE, H100, tokens) for each in (plain, moved))
    inputs = 4 * LARGE.hidden * LARGE.layers * 8192 * 700  # of layers, with checkpoints
    assert after.update - before.update == pytest.approx(2 * inputs / HOST)
    assert (after.rollout, after.score, after.sync_weights) == (before.rollout, before.score, before.sync_weights)
    # The optimizer: 28 bytes a weight, from slower memory.
    waiting = zoo("cluster.ray=auto", "model.offload=weights")
    steps = updates_per_step(waiting)
    slower = 28 * LARGE.parameters * (1 / HOST_MEMORY - 1 / (BANDWIDTH * 3.35e12))
    gathered = seconds(waiting, LARGE, H100, tokens)
    assert gathered.update - before.update >= steps * slower
    assert gathered.update - before.update < steps * slower + 3 * 4 * LARGE.parameters * 8192 / HOST


def test_weights_go_over_the_link_or_through_the_store() -> None:
    """7.6 B of them: 4 bytes twice at 2 GB/s; 2 bytes at half of 450 GB/s, between nodes at 25 GB/s; in the GPU 2 bytes
    twice at 70 % of 3.35 TB/s."""
    spread = ("cluster.ray=auto", "cluster.learners=4", "cluster.engines=4", "engine.name=vllm", "engine.sleep=true")
    direct, count = (*spread, "cluster.transfer=direct"), LARGE.parameters

    def sync_weights(*settings: str, nodes: int = 1) -> float:
        return where(zoo(*settings), parse_hardware("8xH100", nodes)).seconds.sync_weights

    assert sync_weights(*spread) == pytest.approx(8 * count / 2e9)
    assert sync_weights(*direct) == pytest.approx(2 * count / (0.5 * 450e9))
    assert sync_weights(*direct, nodes=2) == pytest.approx(2 * count / 25e9)
    assert sync_weights(*direct, "cluster.colocated=true") == pytest.approx(4 * count / (0.7 * 3.35e12))


def test_moments_in_8_bits_keep_one_learner() -> None:
    assert where(zoo("actor.name=adamw-8bit"), parse_hardware("8xH100")).learners == 1


def test_mean_lengths_stay_within_the_limits() -> None:
    recipe = load_recipe("zoo-grpo-qwen2.5-0.5b", ["data.max_prompt_tokens=50"])
    assert mean_tokens(recipe) == Tokens(50, 2048)
    assert mean_tokens(recipe, 10**6) == Tokens(50, 8192)


# --- the command ------------------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_published_run_on_its_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(told(capsys, "simplerl-zero-qwen2.5-math-7b", "--gpus", "8xH100", "--nodes", "4").split())
    assert "on 4 nodes of 8 x H100: does NOT fit; peak of an engine" in words
    assert "--set engine.name=embedded --set engine.max_batch=128" in words
    assert "the run" in words and "166 steps" in words


def test_one_gpu_that_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    printed = told(capsys, "zero-qwen2.5-1.5b-1gpu", "--gpus", "H100", "--mean-tokens", "400")
    assert "on 1 x H100: fits; peak" in printed
    assert "what to change" not in printed
    assert "a response 400" in printed


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(told(capsys, "zero-qwen2.5-1.5b-1gpu", "--gpus", "H100", "--json"))
    assert plan["fits"] and plan["placement"] == {"learners": 1, "engines": 1, "set": []}
    assert plan["memory_gib"]["all"]["update"]["total"] == pytest.approx(plan["peak_gib"]["all"])
    assert plan["seconds"]["step"] == pytest.approx(
        sum(plan["seconds"][k] for k in ("rollout", "score", "update", "sync_weights"))
    )
    assert plan["changes"] == [] and plan["steps"] == 199


def test_a_model_of_unknown_size_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "quickstart", "--gpus", "H100", "--set", "model.path=somebody/some-model"]) == 2
    assert "model.path=somebody/some-model: its sizes are not known here" in capsys.readouterr().err
