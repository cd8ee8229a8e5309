"""The embedded engine against `transformers`, against a full forward pass, and against itself in other batches."""

from dataclasses import replace

import engine_models as tiny
import pytest
import torch

from simplerl.engines.base import generate

SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.5},
    {"top_p": 0.8},
    {"top_k": 5},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.7},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {
        "qwen2": tiny.model("qwen2"),
        "qwen2-tied": tiny.model("qwen2", tied=True, scale=0.2),
        "llama": tiny.model("llama", seed=1),
    }
    return {name: tiny.save(model, tmp_path_factory.mktemp(name)) for name, model in made.items()}


def reference_logprobs(model, request, token_ids):
    """Log-probs from one forward pass over prompt and response, filtered one row at a time in float64."""
    sampling, start = request.sampling, len(request.prompt.token_ids)
    ids = torch.tensor([[*request.prompt.token_ids, *token_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, start - 1 : -1].double()
    return [reference_row(row, token, sampling) for row, token in zip(logits, token_ids, strict=True)]


def reference_row(logits, token, sampling):
    probs = (logits / (sampling.temperature or 1.0)).softmax(-1).tolist()
    kept = sorted(range(len(probs)), key=lambda i: -probs[i])
    if sampling.temperature:
        kept = kept[: sampling.top_k or None]
        nucleus, share, whole = [], 0.0, sum(probs[i] for i in kept)
        for i in kept:
            if share < sampling.top_p * whole:
                nucleus.append(i)
                share += probs[i]
        kept = nucleus
    return torch.tensor(probs[token] / sum(probs[i] for i in kept)).log().item() if token in kept else float("-inf")


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_transformers_token_for_token(folders, family, attention):
    engine = tiny.engine(folders[family], max_batch=3, attention=attention)
    model = tiny.load(folders[family])
    requests = [tiny.request(f"r{i}", ids, temperature=0.0) for i, ids in enumerate(tiny.prompts(8))]
    for request, rollout in zip(requests, generate(engine, requests), strict=True):
        ids = torch.tensor([request.prompt.token_ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert list(rollout.token_ids) == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["qwen2", "qwen2-tied", "llama"])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_sampled_logprobs_equal_a_full_forward_pass(folders, family, sampling):
    engine, model = tiny.engine(folders[family], max_batch=4), tiny.load(folders[family])
    requests = [tiny.request(f"r{i}", ids, seed=i, **sampling) for i, ids in enumerate(tiny.prompts(10))]
    for request, rollout in zip(requests, generate(engine, requests), strict=True):
        expected = reference_logprobs(model, request, rollout.token_ids)
        assert rollout.sampled_logprobs == pytest.approx(expected, abs=1e-5 / (sampling.get("temperature") or 1))


def test_mixed_sampling_in_one_batch(folders):
    engine, model = tiny.engine(folders["qwen2"]), tiny.load(folders["qwen2"])
    mixed = [*SETTINGS, {"temperature": 0.0}]
    requests = [tiny.request(f"r{i}", ids, seed=i, **mixed[i % 7]) for i, ids in enumerate(tiny.prompts(21))]
    for request, rollout in zip(requests, generate(engine, requests), strict=True):
        expected = reference_logprobs(model, request, rollout.token_ids)
        assert rollout.sampled_logprobs == pytest.approx(expected, abs=1e-5)


def mixed_requests(number=40):
    """Repeated prompts, several lengths and limits."""
    ids = tiny.prompts(number // 4, seed=3)
    return [
        tiny.request(f"r{i}", ids[i // 4], seed=100 + i, max_tokens=4 + 7 * (i % 6), top_p=0.95 if i % 5 else 1.0)
        for i in range(number)
    ]


def test_the_same_requests_repeat_bit_for_bit(folders):
    requests = mixed_requests()
    first = generate(tiny.engine(folders["qwen2"], max_batch=8), requests)
    # An engine that ran other, longer requests before, so its cache is wider and full of old keys.
    engine = tiny.engine(folders["qwen2"], max_batch=8)
    generate(engine, [replace(r, sampling=replace(r.sampling, max_tokens=200)) for r in requests[::-1]])
    assert engine._idle_caches[0].capacity > 200
    assert generate(engine, requests) == first
    assert generate(engine, requests) == first


def test_a_seed_alone_decides_a_response(folders):
    """Other neighbours, another place, another id: the same tokens, log-probs to rounding."""
    engine = tiny.engine(folders["qwen2"], max_batch=8)
    requests = mixed_requests()
    whole = generate(engine, requests)
    for index in (0, 13, 39):
        (alone,) = generate(engine, [replace(requests[index], id="alone")])
        assert alone.token_ids == whole[index].token_ids
        assert alone.sampled_logprobs == pytest.approx(whole[index].sampled_logprobs, abs=1e-5)
    (other,) = generate(engine, [replace(requests[39], seed=7)])
    assert other.token_ids != whole[39].token_ids


@pytest.mark.parametrize("settings", [{"max_batch": n} for n in (1, 3, 8)] + [{"prefill_tokens": 1}], ids=str)
def test_results_do_not_depend_on_the_batch(folders, settings):
    requests = mixed_requests()
    expected = generate(tiny.engine(folders["qwen2"], max_batch=64), requests)
    for one, other in zip(generate(tiny.engine(folders["qwen2"], **settings), requests), expected, strict=True):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-5)


def test_the_cache_grows_past_its_first_capacity(folders, monkeypatch):
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=150) for i, ids in enumerate(tiny.prompts(6))]
    expected = generate(tiny.engine(folders["llama"], max_batch=4), requests)
    monkeypatch.setattr("simplerl.engines._torch_engine.FIRST_RESPONSE_ROOM", 1)
    grown = generate(tiny.engine(folders["llama"], max_batch=4), requests)
    assert max(len(rollout.token_ids) for rollout in expected) > 40
    assert grown == expected


def test_equal_prompts_run_through_the_model_once(folders):
    engine = tiny.engine(folders["qwen2"])
    seen = []
    prefill = engine._model.prefill
    engine._model.prefill = lambda cache, prompts, rows: seen.extend(prompts) or prefill(cache, prompts, rows)
    ids = tiny.prompts(3, shortest=4)
    generate(engine, [tiny.request(f"r{i}", ids[i % 3], seed=i) for i in range(24)])
    assert seen == [tuple(prompt[:-1]) for prompt in ids]


def test_prompts_of_one_token_need_no_prefill(folders):
    engine, model = tiny.engine(folders["qwen2"]), tiny.load(folders["qwen2"])
    requests = [tiny.request(f"r{i}", [5 + i], seed=i) for i in range(3)]
    for request, rollout in zip(requests, generate(engine, requests), strict=True):
        assert rollout.sampled_logprobs == pytest.approx(
            reference_logprobs(model, request, rollout.token_ids), abs=1e-5
        )


def test_bfloat16_reports_float32_log_probs_of_its_own_distribution(folders):
    engine = tiny.engine(folders["qwen2"], dtype="bfloat16", kernels="torch")
    model = tiny.load(folders["qwen2"], torch.bfloat16)
    for index, ids in enumerate(tiny.prompts(6, seed=4)):
        request = tiny.request("r", ids, seed=index)
        (rollout,) = generate(engine, [request])
        full = torch.tensor([[*ids, *rollout.token_ids]])
        with torch.no_grad():
            hidden = model.get_decoder()(full).last_hidden_state[0, len(ids) - 1 : -1].float()
        logprobs = (hidden @ model.lm_head.weight.float().T).log_softmax(-1)
        expected = logprobs.gather(-1, full[0, len(ids) :, None]).squeeze(-1)
        # The bodies differ by bf16 rounding of the attention (2^-8 of a logit of a few units); the head does not.
        assert rollout.sampled_logprobs == pytest.approx(expected.tolist(), abs=0.1)
        assert any(value != torch.tensor(value).bfloat16().item() for value in rollout.sampled_logprobs)
