"""Ends, limits, weights and errors of the embedded engine."""

import subprocess
import sys
from dataclasses import replace

import engine_models as tiny
import pytest
import torch

from simplerl.engines.base import checked, generate
from simplerl.errors import EngineError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.model(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder):
    return tiny.engine(folder, max_batch=4)


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, simplerl.engines.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- ends -------------------------------------------------------------------------------------------------------------


def test_end_tokens_stop_a_row_and_are_kept(engine):
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=60) for i, ids in enumerate(tiny.prompts(40))]
    rollouts = generate(engine, requests)
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert len(stopped) > 5
    for rollout in stopped:
        assert rollout.token_ids[-1] == 1 and 1 not in rollout.token_ids[:-1]
        assert "<eos>" not in rollout.text
    for rollout in rollouts:
        if rollout.finish_reason == "length":
            assert len(rollout.token_ids) == 60 and 1 not in rollout.token_ids


def test_end_tokens_of_the_generation_config_stop_too(folder, tmp_path):
    made = tiny.load(folder)
    made.generation_config.eos_token_id = [1, 20]
    engine = tiny.engine(tiny.save(made, tmp_path))
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=60) for i, ids in enumerate(tiny.prompts(30))]
    last = {r.token_ids[-1] for r in generate(engine, requests) if r.finish_reason == "stop"}
    assert last == {1, 20}


def test_the_last_token_allowed_may_be_the_end_token(engine):
    ids = tiny.prompts(40)
    whole = generate(engine, [tiny.request(f"r{i}", p, seed=i, max_tokens=60) for i, p in enumerate(ids)])
    index = next(i for i, rollout in enumerate(whole) if rollout.finish_reason == "stop")
    for cut, reason in ((0, "stop"), (1, "length")):
        allowed = len(whole[index].token_ids) - cut
        (rollout,) = generate(engine, [tiny.request("r", ids[index], seed=index, max_tokens=allowed)])
        assert rollout.finish_reason == reason and len(rollout.token_ids) == allowed


def test_a_special_stop_string_becomes_its_token(engine):
    requests = [
        tiny.request(f"r{i}", ids, seed=i, max_tokens=60, stop=("<end>",)) for i, ids in enumerate(tiny.prompts(40))
    ]
    rollouts = generate(engine, requests)
    assert {r.token_ids[-1] for r in rollouts if r.finish_reason == "stop"} == {1, 2}
    assert not any("<end>" in r.text or 2 in r.token_ids[:-1] for r in rollouts)


def test_stop_strings_cut_the_text_and_keep_the_tokens(engine):
    """The response without stop strings tells where the one with them must end."""
    tokenizer = tiny.tokenizer()
    free = [tiny.request(f"r{i}", ids, seed=i, max_tokens=80) for i, ids in enumerate(tiny.prompts(60))]
    stop = ("9", "so", "vv")
    stopping = [replace(r, sampling=replace(r.sampling, stop=stop)) for r in free]
    cut = 0
    for whole, short in zip(generate(engine, free), generate(engine, stopping), strict=True):
        texts = [tokenizer.decode(list(whole.token_ids[: n + 1])) for n in range(len(whole.token_ids))]
        ends = [n for n, text in enumerate(texts) if any(s in text for s in stop)]
        if not ends:
            continue
        cut += 1
        assert short.token_ids == whole.token_ids[: ends[0] + 1] and short.finish_reason == "stop"
        text = texts[ends[0]]
        assert short.text == text[: min(text.find(s) for s in stop if s in text)]
    assert cut > 8


def test_more_requests_than_slots_all_finish(engine):
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=1 + i % 9) for i, ids in enumerate(tiny.prompts(50))]
    rollouts = list(engine.submit(requests))
    assert sorted(r.request_id for r in rollouts) == sorted(r.id for r in requests)
    assert all(checked(rollout).prompt.problem.id == rollout.request_id for rollout in rollouts)


def test_no_requests_no_rollouts(engine):
    assert generate(engine, []) == []


# --- weights ----------------------------------------------------------------------------------------------------------


REQUESTS = [tiny.request(f"r{i}", ids, seed=i) for i, ids in enumerate(tiny.prompts(6))]


def test_new_weights_are_used_at_once_and_named_by_version(engine, tmp_path):
    other = tiny.model(seed=9)
    before = generate(engine, REQUESTS)
    engine.load_weights(iter(other.state_dict().items()), version=3)
    after = generate(engine, REQUESTS)
    assert {r.policy_version for r in before} == {0} and {r.policy_version for r in after} == {3}
    fresh = generate(tiny.engine(tiny.save(other, tmp_path), max_batch=4), REQUESTS)
    assert [r.token_ids for r in after] == [r.token_ids for r in fresh] != [r.token_ids for r in before]
    assert [r.sampled_logprobs for r in after] == [r.sampled_logprobs for r in fresh]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropped", [None, "lm_head.weight", "model.embed_tokens.weight"])
def test_tied_weights_come_under_either_name_or_both(tmp_path, dropped, dtype):
    first, second = tiny.model(tied=True, scale=0.2), tiny.model(tied=True, scale=0.2, seed=5)
    engine = tiny.engine(tiny.save(first, tmp_path / "first"), dtype=dtype)
    engine.load_weights(iter([(n, t) for n, t in second.state_dict().items() if n != dropped]), version=1)
    fresh = tiny.engine(tiny.save(second, tmp_path / "second"), dtype=dtype)
    for one, other in zip(generate(engine, REQUESTS), generate(fresh, REQUESTS), strict=True):
        assert one.sampled_logprobs == other.sampled_logprobs and one.token_ids == other.token_ids


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight: missing"),
        (lambda w: w.update({"model.nom.weight": torch.zeros(1)}), "model.nom.weight: unknown"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(7)}), r"model.norm.weight: shape \(7,\), wants \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_the_engine_refuses_to_run(engine, change, words):
    weights = dict(tiny.model().state_dict())
    change(weights)
    with pytest.raises(EngineError, match=words):
        engine.load_weights(iter(weights.items()), version=1)
    with pytest.raises(EngineError, match="incomplete"):
        generate(engine, REQUESTS)
    engine.load_weights(iter(tiny.model().state_dict().items()), version=2)
    assert generate(engine, REQUESTS)[0].policy_version == 2


def test_tied_weights_that_differ_are_refused(tmp_path):
    made = tiny.model(tied=True)
    engine = tiny.engine(tiny.save(made, tmp_path))
    weights = made.state_dict() | {"lm_head.weight": torch.zeros_like(made.lm_head.weight)}
    with pytest.raises(EngineError, match=r"lm_head.weight: tied to model.embed_tokens.weight but different"):
        engine.load_weights(iter(weights.items()), version=1)


def test_weights_cannot_change_under_a_rollout(engine):
    stream = engine.submit(REQUESTS)
    next(stream)
    with pytest.raises(EngineError, match="in flight"):
        engine.load_weights(iter(()), version=1)
    stream.close()
    engine.load_weights(iter(tiny.model().state_dict().items()), version=1)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_the_request(engine, name, value):
    weights = tiny.model().state_dict()
    weights[name][3] = value
    engine.load_weights(iter(weights.items()), version=4)
    with pytest.raises(EngineError, match=r"request r0: the logits for token 0 are not finite.*version 4"):
        generate(engine, REQUESTS)
    # Keys that are not finite must not survive behind a mask: 0 x NaN is NaN.
    engine.load_weights(iter(tiny.model().state_dict().items()), version=5)
    assert all(checked(rollout) for rollout in generate(engine, REQUESTS))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (tiny.request("long", [5] * 500, max_tokens=13), r"long: 500 prompt tokens \+ max_tokens=13 are 513.*512.*12"),
        (tiny.request("empty", []), "empty has an empty prompt"),
        (tiny.request("none", [5], max_tokens=0), "none asks for max_tokens=0"),
        (tiny.request("foreign", [5, 999]), "foreign has token 999"),
        (tiny.request("r0", [5]), "r0 was submitted twice"),
    ],
)
def test_requests_that_cannot_run_are_named_before_any_work(engine, request_, words):
    with pytest.raises(EngineError, match=words):
        engine.submit([*REQUESTS, request_])


def test_the_longest_request_that_fits_runs(engine):
    (rollout,) = generate(engine, [tiny.request("r", [5] * 500, max_tokens=12)])
    assert len(rollout.token_ids) <= 12


def test_models_the_engine_would_decode_wrongly_are_refused(tmp_path):
    sliding = tiny.model(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(EngineError, match=r"full attention only; qwen2 has sliding_attention"):
        tiny.engine(tiny.save(sliding, tmp_path))


def test_a_model_that_scales_its_logits_is_refused(tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=8.0, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(EngineError, match="scaled or capped"):
        tiny.engine(tiny.save(GraniteForCausalLM(config), tmp_path))
