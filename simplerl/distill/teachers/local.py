"""A teacher in this process: any model that an engine can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from simplerl.config import STOP, DistillSampling
from simplerl.data.templates import build_prompts
from simplerl.distill.teachers.base import Answer, Asked, Teacher, TeacherConfig, short_name
from simplerl.engines.base import Engine, checked
from simplerl.types import Prompt, Request, Rollout, Sampling

ANY_LENGTH = 1 << 30


class Config(TeacherConfig):
    """The model and its prompt."""

    name: Literal["local"] = "local"

    model: str
    """A model folder, a run folder, a Hugging Face name, or tiny-math-base."""

    engine: str = "embedded"
    """Inference engine."""

    template: str = "chat"
    """Prompt template, see `data.template` of a training recipe. Default chat."""

    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt, in tokens. Longer ones are refused."""


class LocalTeacher:
    """Asks an engine. The random numbers of a response depend on its seed alone."""

    def __init__(
        self, config: Config, sampling: Sampling, tokenizer: Any, engine: Engine, provenance: dict[str, Any]
    ) -> None:
        self.config, self.sampling = config, sampling
        self.tokenizer, self.engine = tokenizer, engine
        self._provenance = provenance

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Yield the refusals first, then responses as they finish."""
        prompts = self.prompts(asked)
        for each, prompt in zip(asked, prompts, strict=True):
            if self.is_too_long(prompt):
                yield refusal(each, prompt, self.config.max_prompt_tokens)
        requests = [
            Request(each.id, prompt, self.sampling, each.seed)
            for each, prompt in zip(asked, prompts, strict=True)
            if not self.is_too_long(prompt)
        ]
        if requests:
            yield from map(answer_of, self.engine.submit(requests))

    def prompts(self, asked: Sequence[Asked]) -> list[Prompt]:
        """The prompt of each question."""
        problems = {each.problem.id: each.problem for each in asked}
        built, _ = build_prompts(list(problems.values()), self.config.template, self.tokenizer, ANY_LENGTH)
        by_problem = {prompt.problem.id: prompt for prompt in built}
        return [by_problem[each.problem.id] for each in asked]

    def is_too_long(self, prompt: Prompt) -> bool:
        return len(prompt.token_ids) > self.config.max_prompt_tokens

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def close(self) -> None:
        self.engine.close()


def refusal(asked: Asked, prompt: Prompt, most: int) -> Answer:
    tokens = len(prompt.token_ids)
    reason = f"the prompt has {tokens} tokens (teacher.max_prompt_tokens={most})"
    return Answer(asked.id, "", None, "refused", reason, tokens)


def answer_of(rollout: Rollout) -> Answer:
    checked(rollout)
    prompt_tokens = len(rollout.prompt.token_ids)
    tokens = len(rollout.token_ids)
    return Answer(rollout.request_id, rollout.text, tokens, rollout.finish_reason, prompt_tokens=prompt_tokens)


def build(config: Config, sampling: DistillSampling) -> Teacher:
    """Load the model. Raises `ConfigError` if there is none."""
    import torch

    import simplerl
    from simplerl.evaluation.models import model_hash, models_under_test
    from simplerl.evaluation.opening import precision, start

    model = models_under_test(config.model, None)[0]
    dtype, device = precision()
    versions = {"simplerl": simplerl.__version__, "torch": torch.__version__, "dtype": dtype, "device": device}
    provenance = {
        "teacher": config.name,
        "model": short_name(config.model),
        "path": config.model,
        "model_hash": model_hash(model),
        "engine": config.engine,
        "template": config.template,
        "versions": versions,
    }
    tokenizer, engine = start(config.engine, model)
    drawn = Sampling(sampling.max_tokens, sampling.temperature, sampling.top_p, stop=STOP)
    return LocalTeacher(config, drawn, tokenizer, engine, provenance)
