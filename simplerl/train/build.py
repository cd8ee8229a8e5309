"""From a recipe to the parts of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from simplerl import plugins
from simplerl.algorithms.base import Algorithm
from simplerl.config import DataConfig, PluginConfig, Recipe, SFTRecipe, TrainingRecipe
from simplerl.data.base import load_benchmark, load_problems
from simplerl.data.examples import Examples, build_examples
from simplerl.data.stream import PromptStream
from simplerl.data.templates import build_prompts
from simplerl.engines.base import Engine
from simplerl.errors import ConfigError, DataError, EngineError
from simplerl.evaluation.held_out import HeldOut
from simplerl.plan import sft_steps, total_steps, updates_per_step
from simplerl.policy.learner import Learner, Loss
from simplerl.policy.models import resolve_model_path
from simplerl.policy.ranks import Alone
from simplerl.rewards.base import Reward
from simplerl.train.base import Job, Notice, Phase
from simplerl.train.sampler import Sampler
from simplerl.train.sft import LikelihoodLoss, SFTTrainer
from simplerl.train.trainer import RLTrainer
from simplerl.types import Problem, Prompt
from simplerl.verifier.base import Verifier
from simplerl.view import SFT_COLUMNS, STEP_COLUMNS

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


def build_verifier(config: PluginConfig) -> Verifier:
    return plugins.load("verifiers", config.name, config.path).build(config)


def build_reward(config: PluginConfig) -> Reward:
    """A reward plug-in's `build(config)`, or in a user's own file a plain function `reward(rollout, verdict)`."""
    module = plugins.load("rewards", config.name, config.path)
    if hasattr(module, "build"):
        return module.build(config)
    if hasattr(module, "reward"):
        return module.reward
    raise ConfigError(
        f"reward.path={config.path} defines neither `build(config)` nor `reward(rollout, verdict)`; add one of them"
    )


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
    if recipe.sleeps and not hasattr(engine, "sleep"):
        raise EngineError(f"engine.sleep=true, but engine {recipe.engine.name!r} has no method `sleep`; leave it false")
    return engine


def build_learner(
    recipe: TrainingRecipe,
    loss: Loss,
    horizon: int,
    device: torch.device,
    end_id: int | None,
    ranks: Alone | None = None,
) -> Learner:
    """A learner in this process; `end_id` is the token that its responses end with, where that is not the model's."""
    torch.manual_seed(recipe.seed)
    learner = Learner(recipe, loss, horizon, device, ranks)  # type: ignore[arg-type]
    if end_id is not None:
        learner.stop_at(end_id)
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
        packages = getattr(plugins.load("engines", recipe.engine.name, recipe.engine.path), "PACKAGES", ())
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
    from simplerl.cluster.transfer import Direct

    direct = None
    if (kind := recipe.transfer) is not None:
        waits = not getattr(recipe.train, "staleness", 0)
        direct = partial(Direct, kind=kind, dtype=recipe.model.dtype, waits=waits)
    make = partial(build_learner, recipe, loss, horizon, device, end_id)
    offload = recipe.model.offloads_weights
    return RemoteLearner(  # type: ignore[return-value]
        make, recipe.cluster, device.type, place, offload=offload, direct=direct
    )


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


def training_problems(data: DataConfig, notice: Notice) -> list[Problem]:
    """The problems of the recipe's source and levels."""
    problems, notices = load_problems(data.source)
    for text in notices:
        notice(text)
    return [p for p in problems if p.level in data.levels] if data.levels else problems


def training_prompts(recipe: Recipe, tokenizer: Any, notice: Notice) -> list[Prompt]:
    """The training problems as prompts; what is left out is counted and said."""
    data = recipe.data
    problems = training_problems(data, notice)
    prompts, dropped = build_prompts(problems, data.template, tokenizer, data.max_prompt_tokens)
    if dropped:
        notice(f"{dropped} of {len(problems)} prompts are longer than {data.max_prompt_tokens} tokens and left out")
    if not prompts:
        raise DataError(
            f"no training prompt is left of {data.source.name}: data.levels={list(data.levels)}, "
            f"data.max_prompt_tokens={data.max_prompt_tokens}; loosen one of them"
        )
    return prompts


def held_out_sets(recipe: TrainingRecipe, tokenizer: Any, notice: Notice) -> list[HeldOut]:
    """The benchmarks evaluated during training; prompts left out for their length are said."""
    sets = []
    for wanted in recipe.eval.sets:
        problems = load_benchmark(wanted.name)[: wanted.limit]
        template = recipe.eval.template or recipe.data.template
        prompts, dropped = build_prompts(problems, template, tokenizer, recipe.data.max_prompt_tokens)
        if dropped:
            notice(f"{wanted.name}: {dropped} of {len(problems)} prompts are too long; they are not evaluated")
        sets.append(HeldOut(wanted.name, prompts))
    return sets


def reinforcement_job(recipe: Recipe, tokenizer: Any, notice: Notice) -> Job:
    """Problems as prompts, and a trainer that learns from its own responses to them."""
    prompts = training_prompts(recipe, tokenizer, notice)
    steps = total_steps(recipe, len(prompts))

    def build(phase: Phase, place: Placement | None = None) -> RLTrainer:
        device = choose_device(recipe)
        algorithm = build_algorithm(recipe)
        sampler = Sampler(
            recipe=recipe,
            stream=PromptStream(prompts, recipe.seed),
            engine=placed_engine(recipe, tokenizer, device, place),
            verifier=placed_verifier(recipe, place),
            reward=build_reward(recipe.reward),
            algorithm=algorithm,
        )
        learner = placed_learner(recipe, algorithm, steps * updates_per_step(recipe), device, place)
        gc.freeze()  # what is there now stays: looking through it again and again takes 3 % of a short step
        return RLTrainer(recipe, sampler, learner, steps, phase)

    return Job(steps, STEP_COLUMNS, build)


def supervised_job(recipe: SFTRecipe, tokenizer: Any, notice: Notice) -> Job:
    """Problems with their solutions as examples, and a trainer that learns them."""
    examples = training_examples(recipe, tokenizer, notice)
    steps = sft_steps(recipe, len(examples.training))

    def build(phase: Phase, place: Placement | None = None) -> SFTTrainer:
        device = choose_device(recipe)
        loss = LikelihoodLoss()
        learner = placed_learner(recipe, loss, steps, device, place, examples.end_id)
        return SFTTrainer(
            recipe=recipe,
            stream=PromptStream(examples.training, recipe.seed),
            validation=examples.validation,
            engine=placed_engine(recipe, tokenizer, device, place) if recipe.needs_engine else None,
            verifier=placed_verifier(recipe, place),
            reward=build_reward(recipe.reward),
            algorithm=loss,
            learner=learner,
            steps=steps,
            phase=phase,
        )

    return Job(steps, SFT_COLUMNS, build)


def training_examples(recipe: SFTRecipe, tokenizer: Any, notice: Notice) -> Examples:
    """The problems that have a solution, as examples; what is left out is counted and said."""
    data, train = recipe.data, recipe.train
    examples = build_examples(
        training_problems(data, notice),
        data.template,
        tokenizer,
        max_prompt_tokens=data.max_prompt_tokens,
        max_response_tokens=train.max_response_tokens,
        validation=train.validation,
        seed=recipe.seed,
    )
    left_out = (
        (examples.without_response, "problems have no solution to learn"),
        (examples.long_prompts, f"prompts are longer than data.max_prompt_tokens={data.max_prompt_tokens}"),
        (examples.long_responses, f"responses are longer than train.max_response_tokens={train.max_response_tokens}"),
    )
    for count, what in left_out:
        if count:
            notice(f"{count} {what}; they are left out")
    check_context(recipe, examples, notice)
    return examples


def check_context(recipe: SFTRecipe, examples: Examples, notice: Notice) -> None:
    """Says how many sequences are longer than the model was made for: it may learn them badly without a sign."""
    model, trust = resolve_model_path(recipe.model.path), recipe.model.trust_remote_code
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    sizes = [len(e.prompt.token_ids) + len(e.response_ids) for e in examples.training]
    beyond = sum(size > limit for size in sizes) if limit else 0
    if beyond:
        notice(
            f"{beyond} of {len(sizes)} sequences are longer than the {limit} positions that the model was made for, "
            f"the longest has {max(sizes)}; lower train.max_response_tokens to leave them out"
        )
