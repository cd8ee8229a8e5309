"""Builds the services of a run: engine, verifier, reward, algorithm, learner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from simplerl import plugins
from simplerl.algorithms.base import Algorithm
from simplerl.config import Recipe, SFTRecipe, TrainingRecipe
from simplerl.engines.base import Engine
from simplerl.errors import ConfigError, EngineError
from simplerl.learner.base import Learner, Loss
from simplerl.learner.learner import LocalLearner
from simplerl.learner.models import resolve_model_path
from simplerl.learner.parallel import SingleProcess
from simplerl.rewards.base import Reward, RewardConfig
from simplerl.rewards.shaping import shape
from simplerl.verifiers.base import Verifier, build_verifier

if TYPE_CHECKING:
    from simplerl.cluster.placement import Placement


def load_tokenizer(recipe: TrainingRecipe) -> PreTrainedTokenizerBase:
    path = resolve_model_path(recipe.model.path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=recipe.model.trust_remote_code)


def choose_device(recipe: TrainingRecipe) -> torch.device:
    """The recipe's device; `auto` is CUDA if this machine or the recipe's cluster has a GPU.

    Raises `ConfigError` for `cuda` on a machine without one.
    """
    wanted, has_cuda = recipe.model.device, torch.cuda.is_available()
    if wanted == "auto" and not has_cuda and recipe.cluster.ray is not None:
        from simplerl.cluster import ray

        ray.connect(recipe.cluster)
        has_cuda = ray.gpu_counts()[0] > 0
    if wanted == "cuda" and not has_cuda and recipe.cluster.ray is None:
        raise ConfigError("model.device=cuda but this machine has no CUDA device; use model.device=auto or cpu")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and has_cuda) else "cpu")


def build_reward(recipe: Recipe | SFTRecipe) -> Reward:
    """Build the recipe's reward with its shaping, see `simplerl.rewards.shaping`.

    A plug-in defines `build(config)`; a user's own file may define a plain function `reward(rollout, verdict)` instead.
    A user's `Config` that does not extend `RewardConfig` has no shaping.
    """
    config = recipe.reward
    module = plugins.load("rewards", config.name, config.path)
    if hasattr(module, "build"):
        reward = module.build(config)
    elif hasattr(module, "reward"):
        reward = module.reward
    else:
        raise ConfigError(
            f"reward.path={config.path} defines neither `build(config)` nor `reward(rollout, verdict)`; add one of them"
        )
    return shape(reward, config, recipe.response_limit) if isinstance(config, RewardConfig) else reward


def build_algorithm(recipe: Recipe) -> Algorithm:
    config = recipe.algorithm
    return plugins.load("algorithms", config.name, config.path).build(config, recipe)


def build_engine(recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Engine:
    """Build an engine in this process. Raises `EngineError` if it must sleep but cannot."""
    module = plugins.load("engines", recipe.engine.name, recipe.engine.path)
    engine = module.build(
        recipe.engine,
        resolve_model_path(recipe.model.path),
        tokenizer,
        dtype=recipe.model.dtype,
        device=str(device),
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
        kernels=recipe.model.kernels,
        lora=recipe.model.lora,
        **({"transfer": recipe.transfer} if recipe.transfer else {}),
    )
    if not isinstance(engine, Engine):
        raise EngineError(
            f"engine {recipe.engine.name!r}: build() returned a {type(engine).__name__}, not an engine; "
            "make it a subclass of simplerl.engines.base.Engine"
        )
    if recipe.sleeps and not engine.can_sleep:
        raise EngineError(f"engine.sleep=true, but engine {recipe.engine.name!r} cannot sleep; set engine.sleep=false")
    return engine


def build_learner(
    recipe: TrainingRecipe,
    loss: Loss,
    horizon: int,
    device: torch.device,
    end_id: int | None,
    parallel: SingleProcess | None = None,
) -> LocalLearner:
    """Build a learner in this process, or as one rank of `parallel`. `horizon`: optimiser steps of the schedule.

    `end_id`: a token that ends responses, which an exported model stops at too. None: the model's own end tokens.
    """
    torch.manual_seed(recipe.seed)
    assert isinstance(recipe, Recipe | SFTRecipe)
    learner = LocalLearner(recipe, loss, horizon, device, parallel)
    if end_id is not None:
        learner.add_end_token(end_id)
    return learner


@contextmanager
def reserve_placement(
    recipe: Recipe | SFTRecipe, run_dir: Path, *, after_loss: bool = False
) -> Iterator[Placement | None]:
    """Reserve GPUs for the recipe's processes and check their nodes. None: everything runs in this process.

    `after_loss`: wait longer for free GPUs, because a lost node may return. Raises `ClusterError` if GPUs are missing,
    nodes have different releases, or learners' nodes do not share the run's folder.
    """
    if recipe.cluster.ray is None:
        yield None
        return
    from simplerl.cluster import check, placement, ray

    engines = recipe.cluster.engines if recipe.needs_engine else 0
    seconds = int(ray.START_TIMEOUT) if after_loss else placement.RESERVE_TIMEOUT
    device = choose_device(recipe).type
    if recipe.transfer is not None and device != "cuda":
        raise ConfigError("cluster.transfer=direct needs GPUs, but the cluster has none; set cluster.transfer=store")
    with placement.reserve_gpus(recipe.cluster, device, engines, seconds) as reserved:
        packages: tuple[str, ...] = getattr(recipe.engine, "packages", ())
        model = recipe.model.path if Path(recipe.model.path).is_dir() else ""
        check.check_nodes(reserved, run_dir, packages, model, everywhere=recipe.transfer is not None)
        yield reserved


def place_learner(
    recipe: TrainingRecipe,
    loss: Loss,
    horizon: int,
    device: torch.device,
    placement: Placement | None,
    end_id: int | None = None,
) -> Learner:
    """Build a learner in this process, or start one sharded over processes of a cluster."""
    if placement is None:
        return build_learner(recipe, loss, horizon, device, end_id)
    from simplerl.cluster.learner import RemoteLearner
    from simplerl.cluster.transfer import DirectTransfer

    direct = None
    if (kind := recipe.transfer) is not None:
        keeps_weights = not getattr(recipe.train, "staleness", 0)
        direct = partial(DirectTransfer, kind=kind, dtype=recipe.model.dtype, keeps_weights=keeps_weights)
    make = partial(build_learner, recipe, loss, horizon, device, end_id)
    offloads = recipe.model.offloads_weights
    return RemoteLearner(make, recipe.cluster, device.type, placement, offloads_weights=offloads, direct=direct)


def place_engine(
    recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, device: torch.device, placement: Placement | None
) -> Engine:
    """Build an engine in this process, or start several in processes of a cluster."""
    if placement is None:
        return build_engine(recipe, tokenizer, device)
    from simplerl.cluster.engines import RemoteEngines

    return RemoteEngines(partial(build_engine, recipe, tokenizer, device), recipe.cluster, placement)


def place_verifier(recipe: TrainingRecipe, placement: Placement | None) -> Verifier:
    """Build the verifier in this process, or start several in processes of a cluster."""
    if placement is None or not recipe.cluster.verifiers:
        return build_verifier(recipe.verifier)
    from simplerl.cluster.verifiers import RemoteVerifier

    return RemoteVerifier(partial(build_verifier, recipe.verifier), recipe.cluster, placement)
