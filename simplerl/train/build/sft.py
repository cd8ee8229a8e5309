"""Builds the trainer of a supervised fine-tuning recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoConfig

from simplerl.config import SFTRecipe
from simplerl.data.examples import Examples, build_examples
from simplerl.data.stream import PromptStream
from simplerl.estimate.steps import sft_steps
from simplerl.learner.models import resolve_model_path
from simplerl.train.base import Job
from simplerl.train.build.problems import training_problems
from simplerl.train.build.services import build_reward, choose_device, place_engine, place_learner, place_verifier
from simplerl.train.console import SFT_COLUMNS
from simplerl.train.sft import LikelihoodLoss, SFTTrainer
from simplerl.types import Notice, Phase
from simplerl.verifiers.base import usable_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simplerl.cluster.placement import Placement


def supervised_job(recipe: SFTRecipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> Job:
    """Load the examples; the job builds a trainer that learns them."""
    examples = training_examples(recipe, tokenizer, notice)
    steps = sft_steps(recipe, len(examples.training))

    def build(phase: Phase, placement: Placement | None = None) -> SFTTrainer:
        device = choose_device(recipe)
        loss = LikelihoodLoss()
        learner = place_learner(recipe, loss, steps, device, placement, examples.end_id)
        return SFTTrainer(
            recipe=recipe,
            stream=PromptStream(examples.training, recipe.seed),
            validation=examples.validation,
            engine=place_engine(recipe, tokenizer, device, placement) if recipe.needs_engine else None,
            verifier=place_verifier(recipe, placement),
            reward=build_reward(recipe),
            algorithm=loss,
            learner=learner,
            steps=steps,
            phase=phase,
        )

    return Job(steps, SFT_COLUMNS, build)


def training_examples(recipe: SFTRecipe, tokenizer: PreTrainedTokenizerBase, notice: Notice) -> Examples:
    """Build examples from the problems that have a solution. Notices count what is left out."""
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
    for count, reason in left_out:
        if count:
            notice(f"{count} {reason}; they are left out")
    check_context(recipe, examples, notice)
    return examples


def check_context(recipe: SFTRecipe, examples: Examples, notice: Notice) -> None:
    """Show a notice if sequences exceed the model's positions: it may learn them badly without an error."""
    model, trust = resolve_model_path(recipe.model.path), recipe.model.trust_remote_code
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    sizes = [len(e.prompt.token_ids) + len(e.response_ids) for e in examples.training]
    beyond = sum(size > limit for size in sizes) if limit else 0
    if beyond:
        notice(
            f"{beyond} of {len(sizes)} sequences are longer than the {limit} positions of the model, the longest has "
            f"{max(sizes)} tokens; lower train.max_response_tokens to leave them out"
        )
