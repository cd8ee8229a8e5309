"""Supervised fine-tuning, from a recipe to the files it leaves; killed in between, it ends in the same numbers."""

import json
from dataclasses import replace

import pytest
import torch
from run_processes import contents, finish, kill_at, same_weights, server
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from simplerl.config import SFTRecipe, validate_recipe
from simplerl.engines.base import generate
from simplerl.evaluation.models import ModelUnderTest, model_hash, models_under_test
from simplerl.evaluation.opening import start
from simplerl.storage.records import RunFolder
from simplerl.train.run import train

pytestmark = pytest.mark.e2e

KILLED_AT = (
    ("recipe.toml", 1),  # before the run exists
    ("evals/step-000000-arithmetic-test-t0.parquet", 1),  # under its temporary name
    ("metrics.jsonl", 3),  # the line of step 3 is not durable, and there is no checkpoint yet
    ("checkpoints/step-000004", 1),  # complete, under its temporary name
    ("checkpoints", 1),  # step 4 has its name
    ("validation.jsonl", 1),  # while a resumed session drops later lines
    ("validation.jsonl", 2),  # step 6 has a line here and none in `evals.jsonl`
    ("checkpoints/step-000012/actor.safetensors", 1),  # not all files are durable
    ("exports/final", 1),  # after the last checkpoint
)
"""Files and folders during whose fsync a run is killed, one session after the other; which fsync of the session."""


def make_recipe(tiny_model, **changes):
    table = {
        "kind": "sft",
        "seed": 3,
        "model": {"path": str(tiny_model), **changes.pop("model", {})},
        "data": {"source": {"name": "arithmetic", "size": 60, "levels": [3]}},
        "train": {"steps": 24, "batch_size": 8, "micro_batch_tokens": 256, "validation": 0.2},
        "actor": {"learning_rate": 1e-2},
        "eval": {"every": 6, "sets": [{"name": "arithmetic-test", "limit": 12}], "max_tokens": 40},
        "checkpoint": {"every": 4},
    }
    return validate_recipe(table | changes, kind=SFTRecipe)


def test_the_loss_falls_and_the_export_has_the_learned_end_token(tiny_model, tmp_path):
    folder = train(make_recipe(tiny_model, checkpoint={"every": 100}), tmp_path / "run", plain=True)
    records = RunFolder(folder)

    losses = [row["loss/sft"] for row in records.read_metrics()]
    assert losses[0] == pytest.approx(torch.tensor(320.0).log().item(), abs=0.3), "a random model is uniform"
    assert losses[-1] < losses[0] - 2
    validation = records.read_validation()
    assert [row["step"] for row in validation] == [0, 6, 12, 18, 24]
    assert validation[-1]["loss"] < validation[0]["loss"] - 2
    assert [row["step"] for row in records.read_evals()] == [0, 6, 12, 18, 24]
    assert not (folder / "rollouts").exists()

    exported, tokenizer = folder / "exports" / "final", AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id


def test_the_end_token_is_learned(tiny_model, tmp_path):
    """If the loss left out the end token, the model would never stop."""
    from simplerl.data.base import load_source, source_config
    from simplerl.data.templates import build_prompts
    from simplerl.rollouts.grade import make_requests
    from simplerl.types import Sampling

    source = {"name": "arithmetic", "size": 4, "levels": [3]}
    train_block = {"steps": 120, "batch_size": 4, "micro_batch_tokens": 512}
    recipe = make_recipe(tiny_model, data={"source": source}, train=train_block, eval={}, checkpoint={"every": 500})
    exported = str(train(recipe, tmp_path / "run", plain=True) / "exports" / "final")

    problems = load_source(source_config("arithmetic", ["size=4", "levels=[3]"]))
    tokenizer, engine = start("embedded", ModelUnderTest(exported, exported))
    prompts, _ = build_prompts(problems, "chat", tokenizer, 500)
    rollouts = generate(engine, make_requests(prompts, Sampling(80, temperature=0.0), 0, "test"))
    engine.close()
    assert [r.text for r in rollouts] == [p.solution for p in problems]
    assert {r.finish_reason for r in rollouts} == {"stop"}


def test_sequences_beyond_the_models_positions_give_a_notice(tiny_model):
    from simplerl.train.build.sft import training_examples

    long = {"name": "file", "data_path": str(tiny_model.parent / "long.jsonl"), "keys": {"solution": "response"}}
    row = {"question": "Count.", "answer": "1", "response": "1 " * 1500}
    (tiny_model.parent / "long.jsonl").write_text(json.dumps(row) + "\n")
    recipe = make_recipe(tiny_model, data={"source": long}, train={"steps": 1, "max_response_tokens": 5000})
    notices = []
    training_examples(recipe, AutoTokenizer.from_pretrained(tiny_model), notices.append)
    assert len(notices) == 1
    assert notices[0].startswith("1 of 1 sequences are longer than the 1024 positions of the model, the longest has ")


@pytest.fixture(scope="module")
def processes():
    return server()


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_sigkills_change_nothing(processes, tiny_model, tmp_path, lora):
    recipe = make_recipe(tiny_model, model={"lora": lora} if lora else {})
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(processes, recipe, undisturbed)
    for name, count in KILLED_AT:
        kill_at(processes, recipe, killed, name, count)
    finish(processes, recipe, killed)

    assert contents(killed) == contents(undisturbed)
    assert [row["step"] for row in RunFolder(killed).read_metrics()] == list(range(1, 25))
    # Sessions 1 to 5 found no checkpoint, and session 6 was killed before it wrote its event.
    assert [event["step"] for event in RunFolder(killed).read_events()] == [4, 4, 8, 24]
    assert same_weights(killed, undisturbed)


def test_only_adapters_are_trained_and_the_export_is_merged(tiny_model, tmp_path):
    recipe = make_recipe(tiny_model, model={"lora": {"rank": 4, "targets": ["q_proj", "down_proj"]}})
    folder = train(recipe, tmp_path / "run", plain=True)
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "exports/final/model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))}

    newest = max((folder / "checkpoints").iterdir())
    saved = load_file(newest / "actor.safetensors")
    assert saved and all(".lora_" in name for name in saved)
    losses = [row["loss/sft"] for row in RunFolder(folder).read_metrics()]
    assert losses[-1] < losses[0]
    # In the last evaluation the engine merged the adapters itself. The merged export and the checkpoint's adapters must
    # give the same responses.
    last = [row["text"] for row in contents(folder)["tables"]["evals/step-000024-arithmetic-test-t0.parquet"]]
    final = str(folder / "exports" / "final")
    assert last == answers(ModelUnderTest(final, final))
    (kept,) = models_under_test(str(folder), "24")
    assert last == answers(kept)
    assert model_hash(kept) != model_hash(replace(kept, path=final)), "another base model"


def answers(subject):
    from simplerl.data.base import load_benchmark
    from simplerl.data.templates import build_prompts
    from simplerl.rollouts.grade import make_requests
    from simplerl.types import Sampling

    tokenizer, engine = start("embedded", subject)
    prompts, _ = build_prompts(load_benchmark("arithmetic-test")[:12], "chat", tokenizer, 500)
    stop = ("</s>", "<|im_end|>", "<|endoftext|>")
    rollouts = generate(engine, make_requests(prompts, Sampling(40, temperature=0.0, stop=stop), 0, "test"))
    engine.close()
    return [rollout.text for rollout in rollouts]
