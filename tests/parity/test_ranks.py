"""A learner sharded over 1, 2 and 4 processes computes the same: scores, losses, gradients, weights after updates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import engine_models as tiny
import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parents[1] / "rank_learner.py"


def run(ranks, model, out, *settings):
    command = [sys.executable, str(PROGRAM)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    started = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(model), str(out), *settings],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    errors = [each.communicate(timeout=240)[1] for each in started]
    assert all(each.returncode == 0 for each in started), "\n".join(errors)[-3000:]
    return load_file(out / f"{ranks}.safetensors"), json.loads((out / f"{ranks}.json").read_text())


ONE_BY_ONE = (
    "model.kernels=torch",
    "train.packing=false",
    "train.micro_batch_tokens=1",
    "model.gradient_checkpointing=true",
)


# B begins at zero, so A's first gradients are little more than rounding, which AdamW makes as large as any other.
ADAPTERS = ("model.lora.rank=3", "actor.learning_rate=1e-4")


@pytest.mark.parametrize(
    ("settings", "counts"),
    [((), (2, 4)), (ONE_BY_ONE, (2,)), ((*ADAPTERS, *ONE_BY_ONE), (2,))],
    ids=["kernels", "torch", "adapters"],
)
def test_sharded_over_several_ranks_a_learner_computes_the_same(tmp_path, settings, counts):
    """Micro-batches do not divide evenly among the ranks, and some batches have fewer than ranks."""
    model = tiny.save(tiny.model(scale=0.1), tmp_path / "model")
    tensors, metrics = run(1, model, tmp_path, *settings)
    assert any(name.startswith("critic.") for name in tensors) and any(name.startswith("actor.") for name in tensors)
    for ranks in counts:
        others, other_metrics = run(ranks, model, tmp_path, *settings)
        assert others.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (others[name] - tensor).abs().max() <= 1e-6 * max(1.0, tensor.abs().max().item()), name
        for one, other in zip(metrics, other_metrics, strict=True):
            assert other == pytest.approx(one, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("way", [(), ("model.kernels=torch", "model.gradient_checkpointing=true")], ids=str)
def test_what_waits_on_the_host_changes_no_bit(tmp_path, way):
    """On a CPU weights do not move, but FSDP takes the way of a GPU's weights but for the copies themselves."""
    model = tiny.save(tiny.model(scale=0.1), tmp_path / "model")
    (plain := tmp_path / "plain").mkdir()
    tensors, metrics = run(2, model, plain, *way)
    others, other_metrics = run(2, model, tmp_path, "cluster.ray=auto", "model.offload=all", *way)
    policies = [(folder / "2.policies").read_text() for folder in (plain, tmp_path)]
    assert policies == ["OffloadPolicy", "CPUOffloadPolicy"]
    assert other_metrics == metrics and others.keys() == tensors.keys()
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors.items())
