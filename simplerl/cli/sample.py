"""`simplerl sample`: a model's responses to one problem, and what the verifier says of them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simplerl.cli.console import say, say_json
from simplerl.cli.verifier_options import VerifierName, VerifierSettings, settings_from
from simplerl.errors import ConfigError

if TYPE_CHECKING:
    from simplerl.config import PluginConfig
    from simplerl.types import Prompt, Rollout, Sampling, Verdict


def sample(
    model: Annotated[str, typer.Argument(help="A model folder, a run folder, a Hugging Face name, or tiny-math-base.")],
    problem: Annotated[str, typer.Argument(help="The problem's text.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Responses.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response at most.")] = 512,
    gold: Annotated[
        str | None, typer.Option(help="The right answer, or the tests; with it each response gets a verdict.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt template, see `data.template`.")] = "chat",
    seed: Annotated[int, typer.Option(help="The same seed gives the same responses.")] = 0,
    verifier: VerifierName = None,
    verifier_settings: VerifierSettings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the prompt, the responses, and their verdicts by the run's verifier, or the one that is named."""
    from simplerl.types import Problem, Sampling
    from simplerl.verifiers.base import build_verifier

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, n=n)
    asked = Problem("sample", problem, gold or "")
    with closing(build_verifier(verifier_config(model, verifier, verifier_settings))) as judge:
        prompt, rollouts = draw(model_folder(model), asked, template, sampling, seed)
        # Without a gold answer only what is extracted means anything.
        verdicts = [future.result() for future in [judge.submit(asked, rollout) for rollout in rollouts]]
    if as_json:
        say_json({"prompt": prompt.text, "responses": [_row(*pair) for pair in zip(rollouts, verdicts, strict=True)]})
        return
    say(prompt.text)
    for number, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True), 1):
        say(f"\n--- {number} of {n}: {_summary(rollout, verdict, gold)}\n{rollout.text}")


def model_folder(model: str) -> str:
    """The newest export of a run folder; anything else as it is."""
    if not (Path(model) / "recipe.toml").is_file():
        return model
    exports = sorted(path for path in (Path(model) / "exports").glob("*") if (path / "config.json").is_file())
    if not exports:
        raise ConfigError(
            f"run {model} has no exported model yet; it has one at its end, or set checkpoint.export_every"
        )
    return str(exports[0] if exports[0].name == "final" else exports[-1])


def verifier_config(model: str, name: str | None, overrides: list[str] | None) -> PluginConfig:
    """The verifier that is named, else the run folder's own, else the default one; with overrides."""
    from simplerl.config import apply_overrides, plugin_config
    from simplerl.storage.records import RunFolder
    from simplerl.verifiers.base import DEFAULT_VERIFIER

    run = RunFolder(model)
    known = run.read_recipe().get("verifier", DEFAULT_VERIFIER) if run.exists and name is None else name
    settings_from(overrides)  # refuses other keys
    table = apply_overrides({"verifier": known or DEFAULT_VERIFIER}, overrides or ())["verifier"]
    return plugin_config("verifiers", "verifier", None, table)


def draw(model: str, problem: Any, template: str, sampling: Sampling, seed: int) -> tuple[Prompt, list[Rollout]]:
    """The prompt and `sampling.n` responses to it."""
    from simplerl.data.templates import build_prompts
    from simplerl.engines.base import generate
    from simplerl.evaluation.models import ModelUnderTest
    from simplerl.evaluation.opening import start
    from simplerl.rollouts.grade import make_requests

    tokenizer, engine = start("embedded", ModelUnderTest(model, model))
    try:
        prompts, _ = build_prompts([problem], template, tokenizer, max_prompt_tokens=1 << 30)
        return prompts[0], generate(engine, make_requests(prompts, sampling, seed, "sample command"))
    finally:
        engine.close()


def _summary(rollout: Rollout, verdict: Verdict, gold: str | None) -> str:
    lines = (verdict.extracted or "").count("\n")
    # A program is in the response already.
    answer = f"answer of {lines} lines" if lines else f"answer {verdict.extracted}"
    answer = f"no answer ({verdict.method})" if verdict.extracted is None else answer
    truncated = ", truncated" if rollout.finish_reason == "length" else ""
    return f"{answer}{'' if gold is None else f', {verdict.label}'}, {len(rollout.token_ids)} tokens{truncated}"


def _row(rollout: Rollout, verdict: Verdict) -> dict[str, Any]:
    tokens = {"tokens": len(rollout.token_ids), "finish_reason": rollout.finish_reason}
    return {"text": rollout.text, **tokens, "verdict": asdict(verdict)}
