"""The results of evaluations as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simplerl.cli.console import say, say_json
from simplerl.formatting import bounds, number, percent, table

Results = Mapping[str, Any]
HEADER = ("benchmark", "n", "", "accuracy", "95 % interval", "pass@k", "maj@k", "no answer", "truncated", "tokens")


def print_results(results: Sequence[Results], *, as_json: bool) -> None:
    """A table for each evaluation, or all as JSON."""
    if as_json:
        say_json(results[0] if len(results) == 1 else list(results))
        return
    for one in results:
        say(f"\n{title(one['plan'])}")
        say(table([HEADER, *rows(one)]))
        for note in notes(one):
            say(note)


def title(plan: Mapping[str, Any]) -> str:
    """The model and the settings that hold for all."""
    said = [str(plan["model"])]
    said += [f"suite {plan['suite']}"] if plan.get("suite") else []
    said += [f"template {plan['template']}"] if plan.get("template") else []
    return ", ".join(said)


def rows(results: Results) -> list[tuple[str, ...]]:
    found = [benchmark(name, one) for name, one in results["benchmarks"].items()]
    if "average" in results:
        mean = results["average"]
        found.append(("average", "", "", percent(mean["value"]), bounds(mean["low"], mean["high"]), *[""] * 5))
    return found


def benchmark(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{one['problems']:,}",
        one["metric"],
        percent(one["accuracy"]["value"]),
        bounds(one["accuracy"]["low"], one["accuracy"]["high"]),
        largest(one["pass_at"]) if one["samples"] > 1 else "",
        largest(one["maj_at"]),
        percent(one["shares"]["no_answer"]),
        percent(one["shares"]["clip_ratio"]),
        number(one["tokens"]["all"], ".0f"),
    )


def notes(results: Results) -> list[str]:
    """Errors of the verifier, and what the size of a small benchmark can show."""
    said = []
    for name, one in results["benchmarks"].items():
        if one["shares"]["error"]:
            said.append(f"{name}: the verifier failed on {percent(one['shares']['error'])} of the responses")
        smallest = one["smallest_difference"]["unpaired"]
        if one["problems"] <= 100 and smallest:
            said.append(f"{name} has {one['problems']} problems: differences below {percent(smallest)} cannot be seen")
    return said


def largest(estimates: Mapping[str, Mapping[str, float]]) -> str:
    """The value at the largest k."""
    if not estimates:
        return ""
    k = max(estimates, key=int)
    return f"{percent(estimates[k]['value'])} (k={k})"
