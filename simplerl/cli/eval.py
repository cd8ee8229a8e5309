"""`simplerl eval`: benchmarks under published settings, every response kept, every number with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simplerl.cli.console import say_note
from simplerl.cli.verifier_options import VerifierName, VerifierSettings, evaluation_verifier, settings_from
from simplerl.errors import ConfigError

if TYPE_CHECKING:
    from simplerl.config import PluginConfig
    from simplerl.evaluation.models import ModelUnderTest
    from simplerl.evaluation.planning import Asked
    from simplerl.evaluation.suite import Plan


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="A model folder, a run folder, a Hugging Face name, or tiny-math-base."),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="simplerl-v0, simplerl-v1, arithmetic, or a .toml.")] = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="Comma-separated, instead of the suite's; a path of a JSONL is one of yours.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template (default: the suite's).")] = None,
    engine: Annotated[str, typer.Option(help="Inference engine.")] = "embedded",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Samples per problem.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a response at most.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed on the same engine gives the same table.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N problems of each benchmark only.")] = None,
    checkpoints: Annotated[str | None, typer.Option(help="Of a run folder: all, or steps such as 20,40.")] = None,
    trained: Annotated[bool | None, typer.Option(help="Use the suite's settings for trained models.")] = None,
    verifier: VerifierName = None,
    verifier_settings: VerifierSettings = None,
    from_responses: Annotated[
        Path | None, typer.Option(help="Grade recorded responses (JSONL) instead of asking a model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the evaluation (default: evals/MODEL-SUITE).")] = None,
    cache: Annotated[bool, typer.Option(help="Reuse responses that were generated before.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Evaluate a model. Run the same command again to resume an evaluation that was stopped or killed."""
    if (model is None) == (from_responses is None):
        raise ConfigError("name a MODEL, or recorded responses with --from-responses FILE, and not both")
    if from_responses is not None:
        results = [grade_file(from_responses, out, evaluation_verifier(verifier, verifier_settings))]
    else:
        from simplerl.evaluation.planning import Asked, names_in
        from simplerl.verifiers.base import DEFAULT_VERIFIER

        decoding = {"n": n, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        names, judge = names_in(benchmarks), (verifier or DEFAULT_VERIFIER, settings_from(verifier_settings))
        asked = Asked(suite, names, template, engine, decoding, seed, limit, trained, *judge)
        results = evaluate_model(str(model), checkpoints, asked, out, cache=cache)
    from simplerl.cli.eval_table import print_results

    print_results(results, as_json=as_json)


def grade_file(path: Path, out: Path | None, verifier: PluginConfig) -> dict[str, Any]:
    from simplerl.evaluation.recorded import grade_recorded

    return grade_recorded(path, out or Path("evals") / path.name.partition(".")[0], verifier)


def evaluate_model(
    model: str, checkpoints: str | None, asked: Asked, out: Path | None, *, cache: bool
) -> list[dict[str, Any]]:
    """One evaluation, or one per checkpoint in a folder of its own."""
    from simplerl.evaluation.models import models_under_test
    from simplerl.evaluation.planning import make_plan, suite_for

    found = models_under_test(model, checkpoints)
    suite = suite_for(found[0], asked)
    plans = [make_plan(each, suite, asked) for each in found]
    folder = out or Path("evals") / f"{Path(model).name}-{Path(suite).stem}"
    folders = [folder / f"step-{each.step:06d}" if checkpoints else folder for each in found]
    return run_all(found, plans, folders, cache=cache)


def run_all(
    found: list[ModelUnderTest], plans: list[Plan], folders: list[Path], *, cache: bool
) -> list[dict[str, Any]]:
    """Every subject in turn, with one engine where they are checkpoints of one run."""
    from simplerl.evaluation.opening import opened

    results = []
    for model, plan, folder in zip(found, plans, folders, strict=True):
        with opened(model, plan, folder, use_cache=cache, notice=say_note) as session:
            results.append(session.run())
        say_note(f"responses and results: {folder}")
    return results
