"""Starts what an evaluation needs and ends it again: tokenizer, engine, verifier, cache, the folder's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import simplerl
from simplerl import plugins
from simplerl.config import PluginConfig
from simplerl.engines.base import Engine
from simplerl.environment import describe_environment
from simplerl.evaluation.cache import ResponseCache, default_path
from simplerl.evaluation.folder import EvalFolder
from simplerl.evaluation.models import ModelUnderTest, load_checkpoint, no_model
from simplerl.evaluation.session import Session
from simplerl.evaluation.suite import Plan
from simplerl.learner.models import resolve_model_path
from simplerl.progress import ProgressBars
from simplerl.verifiers.base import build_verifier, check_verifier, evaluation_config


@contextmanager
def opened(
    model: ModelUnderTest, plan: Plan, folder: Path, *, use_cache: bool, notice: Callable[[str], None]
) -> Iterator[Session]:
    """A session ready to run. The folder is held against other processes; an evaluation of another plan is refused."""
    config = evaluation_config(plan.verifier, plan.verifier_settings)
    check_verifier(config)
    with ExitStack() as stack:
        kept = EvalFolder(folder)
        stack.enter_context(kept.lock())
        kept.prepare(plan, describe_environment())
        tokenizer, engine = start(plan.engine, model)
        stack.callback(engine.close)
        verifier = build_verifier(config)
        stack.callback(verifier.close)
        cache = ResponseCache(default_path(), identity(plan), notice) if use_cache else None
        if cache:
            stack.callback(cache.close)
        bars = stack.enter_context(ProgressBars())
        yield Session(plan, kept, tokenizer, engine, verifier, cache, bars.show, notice)


def start(name: str, model: ModelUnderTest) -> tuple[Any, Engine]:
    """Tokenizer and engine: bfloat16 on CUDA where there is one, otherwise float32 on the CPU."""
    path = resolve_model_path(model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise no_model(path, error) from error
    module = plugins.load("engines", name)
    config: type[PluginConfig] = getattr(module, "Config", PluginConfig)
    dtype, device = precision()
    known = config.model_validate({"name": name})
    engine = module.build(known, path, tokenizer, dtype=dtype, device=device, lora=model.lora)
    if model.weights is not None:
        load_checkpoint(engine, model)
    return tokenizer, engine


def precision() -> tuple[str, str]:
    return ("bfloat16", "cuda") if torch.cuda.is_available() else ("float32", "cpu")


def identity(plan: Plan) -> str:
    """What decides responses besides the request: weights, engine, versions, precision."""
    dtype, device = precision()
    return f"{plan.model_hash} {plan.engine} simplerl {simplerl.__version__} torch {torch.__version__} {dtype} {device}"
