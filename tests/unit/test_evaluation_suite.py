"""Suites are the published settings; a plan says exactly what is asked."""

from __future__ import annotations

import os

import pytest

from simplerl.data.base import load_benchmark
from simplerl.data.templates import render
from simplerl.errors import ConfigError
from simplerl.evaluation.suite import Decoding, load_suite, parts_of, shipped_suites

pytestmark = pytest.mark.unit

SIZES = {
    "aime24": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva_math": 272, "olympiadbench": 675,
    "gaokao2023en": 385, "college_math": 2818,
}  # fmt: skip


def parts(name: str, *wanted: str, trained: bool = False, **given: float):
    return parts_of(load_suite(name), wanted, Decoding(**given), trained=trained)


def test_v0_is_the_published_protocol() -> None:
    suite = load_suite("simplerl-v0")
    assert suite.template == "qwen25-math-cot"
    assert {part.benchmark for part in parts("simplerl-v0")} == set(SIZES)
    for part in parts("simplerl-v0"):
        assert (part.n, part.temperature, part.top_p, part.max_tokens) == (1, 0.0, 1.0, 3000)
    assert set(suite.average) == {"aime24", "math500", "amc23", "minerva_math", "olympiadbench"}


def test_v1_samples_trained_models_and_asks_base_models_greedily() -> None:
    base = {part.name: part for part in parts("simplerl-v1")}
    trained = {part.name: part for part in parts("simplerl-v1", trained=True)}
    assert load_suite("simplerl-v1").template == "qwen-boxed"
    assert {part.max_tokens for part in base.values()} == {16_000}
    assert (base["gsm8k"].temperature, base["gsm8k"].top_p) == (0.0, 1.0)
    assert (trained["gsm8k"].temperature, trained["gsm8k"].top_p) == (1.0, 0.95)
    for part in (base["aime24-avg32"], trained["aime24-avg32"]):
        assert (part.benchmark, part.n, part.temperature, part.top_p) == ("aime24", 32, 1.0, 0.95)


def test_prompts_of_v0_byte_for_byte() -> None:
    expected = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(load_suite("simplerl-v0").template, "What is 1+1?") == expected


@pytest.mark.skipif(not os.environ.get("SIMPLERL_DATA"), reason="SIMPLERL_DATA does not name the folder of data sets")
@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_benchmarks(name: str) -> None:
    assert len(load_benchmark(name)) == SIZES[name]


def test_what_is_given_wins_over_the_suite() -> None:
    [part] = parts("simplerl-v1", "minerva-math", trained=True, n=4, temperature=0.6)
    assert (part.name, part.n, part.temperature, part.top_p, part.max_tokens) == ("minerva_math", 4, 0.6, 0.95, 16_000)


def test_names_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no suite 'simplerl-v2'; did you mean"):
        load_suite("simplerl-v2")
    with pytest.raises(ConfigError, match="no benchmark 'aime23'; did you mean 'aime2"):
        parts("simplerl-v0", "aime23")
    assert {"simplerl-v0", "simplerl-v1", "arithmetic"} <= set(shipped_suites())


def test_a_file_of_ones_own_is_a_benchmark() -> None:
    [part] = parts("arithmetic", "some/where/mine.jsonl")
    assert (part.name, part.path) == ("mine", "some/where/mine.jsonl")
