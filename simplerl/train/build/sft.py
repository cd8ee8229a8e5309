"""From a recipe of supervised fine-tuning to its trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from simplerl.config import SFTRecipe
from simplerl.data.examples import Examples, build_examples
from simplerl.data.stream import PromptStream
from simplerl.estimate.steps import sft_steps
from simplerl.learner.models import resolve_model_path
from simplerl.train.base import Job
from simplerl.train.build.problems import training_problems
from simplerl.train.build.services import build_reward, choose_device, placed_engine, placed_learner, placed_verifier
from simplerl.train.console import SFT_COLUMNS
from simplerl.train.sft import LikelihoodLoss, SFTTrainer
from simplerl.types import Notice, Phase
from simplerl.verifiers.base import usable_problems

if TYPE_CHECKING:
    from simplerl.cluster.placement import Placement


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
            reward=build_reward(recipe),
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
        training_problems(data, notice, usable_problems(recipe.verifier.name, recipe.verifier.path)),
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
