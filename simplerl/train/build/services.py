"""From a recipe to the parts of a run."""

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
    """The recipe's device; `auto` is CUDA where this machine or the recipe's cluster has it."""
    wanted, here = recipe.model.device, torch.cuda.is_available()
    if wanted == "auto" and not here and recipe.cluster.ray is not None:
        from simplerl.cluster import ray

        ray.start(recipe.cluster)
        here = ray.gpus()[0] > 0
    if wanted == "cuda" and not here and recipe.cluster.ray is None:
        raise ConfigError("model.device=cuda but this machine has no CUDA device; use model.device=auto or cpu")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and here) else "cpu")


def build_reward(recipe: Recipe | SFTRecipe) -> Reward:
    """The recipe's reward with its shaping (`simplerl.rewards.shaping`).

    It comes from the plug-in's `build(config)`, or is the plain function `reward(rollout, verdict)` of a user's file. A
    user's `Config` that does not extend `RewardConfig` has no shaping.
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
    """An engine in this process. Raises `EngineError` where it should sleep and cannot."""
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
        raise EngineError(f"engine.sleep=true, but engine {recipe.engine.name!r} cannot sleep; leave it false")
    return engine


def build_learner(
    recipe: TrainingRecipe,
    loss: Loss,
    horizon: int,
    device: torch.device,
    end_id: int | None,
    parallel: SingleProcess | None = None,
) -> LocalLearner:
    """The learner in this process. `end_id`: the token that ends its responses. None: the model's own end tokens."""
    torch.manual_seed(recipe.seed)
    assert isinstance(recipe, Recipe | SFTRecipe)
    learner = LocalLearner(recipe, loss, horizon, device, parallel)
    if end_id is not None:
        learner.add_end_token(end_id)
    return learner


@contextmanager
def reserved(recipe: Recipe | SFTRecipe, run_dir: Path, *, again: bool = False) -> Iterator[Placement | None]:
    """Where the recipe's learners and engines go in a cluster; None where everything runs in this process.

    `again`, after a loss, it waits for a node that may come back. Raises `ClusterError` where GPUs are missing, or
    nodes differ or do not share the run's folder.
    """
    if recipe.cluster.ray is None:
        yield None
        return
    from simplerl.cluster import check, placement, ray

    engines = recipe.cluster.engines if recipe.needs_engine else 0
    seconds = int(ray.START) if again else placement.RESERVE
    device = choose_device(recipe).type
    if recipe.transfer is not None and device != "cuda":
        raise ConfigError("cluster.transfer=direct is made for GPUs, and the cluster has none; leave it at store")
    with placement.reserved(recipe.cluster, device, engines, seconds) as place:
        packages = getattr(recipe.engine, "packages", ())
        model = recipe.model.path if Path(recipe.model.path).is_dir() else ""
        check.check(place, run_dir, packages, model, everywhere=recipe.transfer is not None)
        yield place


def placed_learner(
    recipe: TrainingRecipe,
    loss: Loss,
    horizon: int,
    device: torch.device,
    place: Placement | None,
    end_id: int | None = None,
) -> Learner:
    """A learner in this process, or sharded over processes of a cluster."""
    if place is None:
        return build_learner(recipe, loss, horizon, device, end_id)
    from simplerl.cluster.learner import RemoteLearner
    from simplerl.cluster.transfer import DirectTransfer

    direct = None
    if (kind := recipe.transfer) is not None:
        keeps_weights = not getattr(recipe.train, "staleness", 0)
        direct = partial(DirectTransfer, kind=kind, dtype=recipe.model.dtype, keeps_weights=keeps_weights)
    make = partial(build_learner, recipe, loss, horizon, device, end_id)
    offloads = recipe.model.offloads_weights
    return RemoteLearner(make, recipe.cluster, device.type, place, offloads_weights=offloads, direct=direct)


def placed_engine(
    recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, device: torch.device, place: Placement | None
) -> Engine:
    """An engine in this process, or several in processes of a cluster."""
    if place is None:
        return build_engine(recipe, tokenizer, device)
    from simplerl.cluster.engines import RemoteEngines

    return RemoteEngines(partial(build_engine, recipe, tokenizer, device), recipe.cluster, place)


def placed_verifier(recipe: TrainingRecipe, place: Placement | None) -> Verifier:
    """The verifier in this process, or several in processes of a cluster."""
    if place is None or not recipe.cluster.verifiers:
        return build_verifier(recipe.verifier)
    from simplerl.cluster.verifiers import RemoteVerifier

    return RemoteVerifier(partial(build_verifier, recipe.verifier), recipe.cluster, place)
