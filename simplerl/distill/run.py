"""A whole distillation: problems, answers, verdicts, filter. Run the same command again to resume it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from simplerl import plugins
from simplerl.config import DistillRecipe
from simplerl.distill.filter import FilterOutcome, Response, decide
from simplerl.distill.folder import DistillFolder, recipe_sha256
from simplerl.distill.problems import Chosen, choose_problems, questions
from simplerl.distill.teachers.base import Answer, Asked, Teacher, short_name
from simplerl.distill.yields import yields_of
from simplerl.environment import describe_environment
from simplerl.errors import EngineError
from simplerl.progress import ProgressBars
from simplerl.rollouts.grade import results_in_order
from simplerl.types import Rollout
from simplerl.verifiers.base import build_verifier, check_verifier, usable_problems

Notice = Callable[[str], None]
WAITING_VERDICTS = 1024


def distill(
    recipe: DistillRecipe, folder: Path, *, notice: Notice = lambda text: None, plain: bool | None = None
) -> Path:
    """Request every response that the folder does not have; return the file of the training data.

    Does nothing if the file exists and the recipe is equal. `plain` shows no progress bar; without a terminal there is
    none either.
    """
    check_verifier(recipe.verifier)
    kept = DistillFolder(folder)
    with kept.lock():
        if not kept.is_finished(recipe):
            kept.prepare(recipe, describe_environment())
            chosen = choose_problems(
                recipe.data, recipe.seed, usable_problems(recipe.verifier.name, recipe.verifier.path)
            )
            for text in chosen.notices:
                notice(text)
            asked = questions(chosen.problems, recipe)
            with interruption(kept, asked, notice):
                collect(recipe, kept, asked, notice, plain=plain)
                finish(recipe, kept, asked, chosen)
    return kept.kept


@contextmanager
def interruption(folder: DistillFolder, asked: Sequence[Asked], notice: Notice) -> Iterator[None]:
    """Report progress after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        answers = len(folder.answers(asked))
        notice(f"stopped; {answers} of {len(asked)} answers are in {folder.path}. Run the same command again to resume")
        raise


# --- answers ----------------------------------------------------------------------------------------------------------


def collect(
    recipe: DistillRecipe, folder: DistillFolder, asked: Sequence[Asked], notice: Notice, *, plain: bool | None
) -> None:
    """Request the missing answers and store each at its arrival."""
    there = folder.answers(asked)
    missing = {each.id: each for each in asked if each.id not in there}
    if there and missing:
        notice(f"{len(there)} of {len(asked)} answers are stored already")
    if not missing:
        return
    with closing(build_teacher(recipe)) as teacher:
        folder.check_provenance(provenance(recipe, teacher))
        with ProgressBars(plain) as bars:
            bars.show("answers", len(there), len(asked))
            for answer in teacher.answer(list(missing.values())):
                if answer.id not in missing:
                    raise EngineError(
                        f"the teacher answered {answer.id!r}, which was not asked, or was answered before"
                    )
                folder.append(missing.pop(answer.id), answer)
                bars.show("answers", len(asked) - len(missing), len(asked))
    if missing:
        raise EngineError(f"{len(missing)} of {len(asked)} questions were never answered; the first is {min(missing)}")


def build_teacher(recipe: DistillRecipe) -> Teacher:
    config = recipe.teacher
    return plugins.load("teachers", config.name, config.path).build(config, recipe.sampling)


def provenance(recipe: DistillRecipe, teacher: Teacher) -> dict[str, Any]:
    """Origin of the answers, independent of the filter."""
    return {**teacher.provenance(), "seed": recipe.seed, "sampling": recipe.sampling.model_dump(mode="json")}


# --- what is kept -----------------------------------------------------------------------------------------------------


def finish(recipe: DistillRecipe, folder: DistillFolder, asked: Sequence[Asked], chosen: Chosen) -> None:
    """Grade and filter all answers, in the order of the problems, and write the results."""
    responses = graded(recipe, asked, folder.answers(asked))
    outcomes = decide(responses, recipe.filter)
    common = {
        "teacher": short_name(getattr(recipe.teacher, "model", recipe.teacher.name)),
        "temperature": recipe.sampling.temperature,
        "recipe_sha256": recipe_sha256(recipe),
    }
    kept = [kept_row(each) | common for each, outcome in zip(responses, outcomes, strict=True) if outcome == "kept"]
    rows = [outcome_row(each, outcome) for each, outcome in zip(responses, outcomes, strict=True)]
    folder.finish(kept, rows, yields_of(responses, outcomes, chosen))


def graded(recipe: DistillRecipe, asked: Sequence[Asked], answers: Mapping[str, Answer]) -> list[Response]:
    """Every answer with its verdict, in the order of the questions."""
    verifier = build_verifier(recipe.verifier)
    answered = [each for each in asked if answers[each.id].finish_reason != "refused"]
    with closing(verifier):
        tasks = (
            (each.id, verifier.submit(each.problem, Rollout.recorded(each.problem, answers[each.id].text)))
            for each in answered
        )
        verdicts = dict(results_in_order(tasks, max_pending=WAITING_VERDICTS))
    return [Response(each, answers[each.id], verdicts.get(each.id)) for each in asked]


def kept_row(response: Response) -> dict[str, Any]:
    """A row of the training data."""
    asked, verdict = response.asked, response.verdict
    assert verdict is not None
    return {
        "id": asked.id,
        "problem_id": asked.problem.id,
        "sample_index": asked.sample_index,
        "problem": asked.problem.question,
        "answer": asked.problem.answer,
        "level": asked.problem.level,
        "subject": asked.problem.subject,
        "source": asked.problem.source,
        "response": response.answer.text,
        "tokens": response.tokens,
        "verdict": verdict.label,
        "method": verdict.method,
        "extracted": verdict.extracted,
    }


def outcome_row(response: Response, outcome: FilterOutcome) -> dict[str, Any]:
    verdict = response.verdict
    return {
        "id": response.asked.id,
        "outcome": outcome,
        "verdict": verdict and verdict.label,
        "method": verdict and verdict.method,
        "extracted": verdict and verdict.extracted,
        "tokens": response.tokens,
    }
