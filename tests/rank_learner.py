"""One rank of a learner, as a program: RANK RANKS MODEL OUT [SETTING=VALUE ...]. Rank 0 writes the results."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from learner_cases import make_batch, make_learner, make_recipe
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule

from simplerl.learner.offload import on_host
from simplerl.learner.sharded import Sharded


def gradients(learner) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": learner.parallel.full_tensor(parameter.grad).clone()
        for name, optimiser in learner.optimizers.items()
        for key, parameter in optimiser.model.named_parameters()
        if parameter.grad is not None
    }


def groups(model) -> list:
    """FSDP's parameter groups of the modules of a model."""
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    return [group for state in states for group in state._fsdp_param_groups]


def main(rank: int, ranks: int, model: str, out: Path, settings: list[str]) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{out.absolute()}/{ranks}.meet"  # a free port may be taken before the ranks connect
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    config = make_recipe(model, settings).model
    learner, algorithm = make_learner(model, settings, Sharded(torch.device("cpu"), offload=config.offloads_weights))
    if config.offloads_activations:
        learner.saved_activations = partial(on_host, pinned=False)
    policies = {type(group.offload_policy).__name__ for group in groups(learner.actor)}
    batch = learner.score(make_batch())
    credited, _ = algorithm.compute_advantages(batch)
    found = {"logprobs": batch.old_logprobs, "values": batch.values, "reference": batch.ref_logprobs}
    metrics = [learner.backward(credited, algorithm, train_actor=True)]
    found |= gradients(learner)
    learner.zero_grad()
    for rows in torch.arange(len(batch)).split(4):
        metrics.append(learner.update(credited.select(rows), algorithm))
    weights = {f"weights.{name}": weight.clone() for name, weight in learner.weights()}
    found["after"] = learner.logprobs(batch)
    if rank == 0:
        save_file(
            {name: tensor.contiguous() for name, tensor in (found | weights).items()}, out / f"{ranks}.safetensors"
        )
        (out / f"{ranks}.json").write_text(json.dumps(metrics))
        (out / f"{ranks}.policies").write_text(" ".join(sorted(policies)))
    dist.barrier()  # no rank may exit while another still sends to it
    # A thread of gloo may free its last tensor later, which aborts a Python that is exiting (pytorch#190489).
    os._exit(0)


if __name__ == "__main__":
    rank, ranks, model, out, *settings = sys.argv[1:]
    main(int(rank), int(ranks), model, Path(out), settings)
