"""`simplerl plan`: whether a recipe fits given GPUs, its placement on them, and the estimated time of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simplerl.cli.console import say, say_json
from simplerl.cli.train import Overrides
from simplerl.errors import ConfigError
from simplerl.formatting import Row, gib, rough_duration, table

if TYPE_CHECKING:
    from simplerl.estimate.changes import Change, Settings
    from simplerl.estimate.hardware import Hardware
    from simplerl.estimate.memory import Worker
    from simplerl.estimate.placement import Placement
    from simplerl.estimate.times import MeanTokens


def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `simplerl recipes`) or a path ending in .toml.")],
    gpus: Annotated[str, typer.Option(metavar="8xH100", help="GPUs of a node: their number and name.")],
    nodes: Annotated[int, typer.Option(help="Number of nodes with these GPUs.")] = 1,
    overrides: Overrides = None,
    mean_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens of a response. Times depend on it, memory does not.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory and time of a recipe on GPUs, and suggest changes if it does not fit."""
    from simplerl.config import load_recipe
    from simplerl.estimate import times
    from simplerl.estimate.changes import fewest_gpus, suggest_changes
    from simplerl.estimate.hardware import parse_hardware
    from simplerl.estimate.placement import best_placement
    from simplerl.estimate.shapes import known_shape

    hardware = parse_hardware(gpus, nodes)
    loaded = load_recipe(recipe, overrides or ())
    shape = known_shape(loaded.model.path)
    if shape is None:
        raise ConfigError(
            f"model.path={loaded.model.path}: the model's sizes are unknown; name a folder with its config.json, "
            "or a model of the same size"
        )
    tokens = times.mean_tokens(loaded, mean_tokens)
    placement = best_placement(loaded, shape, hardware, tokens)
    suggested = [] if placement.fits else suggest_changes(loaded, placement, shape, hardware, tokens)
    larger = None if placement.fits else fewest_gpus(loaded, shape, hardware, tokens)
    report = _Report(hardware, tokens, placement, suggested, larger, _steps_of_run(placement))
    if as_json:
        say_json(_as_dict(report))
    else:
        _print(recipe, report)


@dataclass(frozen=True, slots=True)
class _Report:
    """Everything that is printed."""

    hardware: Hardware
    tokens: MeanTokens
    placement: Placement
    changes: list[Change]
    fewest_gpus: tuple[Hardware, Change] | None
    steps: int | None
    """Steps of the run. None: unknown."""


def _steps_of_run(placement: Placement) -> int | None:
    from simplerl.cli.dry_run import count_problems
    from simplerl.estimate.overview import make_plan

    return make_plan(placement.recipe, count_problems(placement.recipe)).steps


# --- JSON -------------------------------------------------------------------------------------------------------------


def _as_dict(report: _Report) -> dict[str, Any]:
    from simplerl.environment import GIB
    from simplerl.estimate.memory import USABLE
    from simplerl.estimate.times import ASSUMPTIONS

    steps, fewest = report.steps, report.fewest_gpus
    return {
        "hardware": _hardware(report.hardware),
        "usable_gib": USABLE * report.hardware.gpu.memory / GIB,
        **_placement(report.placement),
        "mean_tokens": asdict(report.tokens),
        "steps": steps,
        "hours": None if steps is None else steps * report.placement.seconds.step / 3600,
        "changes": [_change(change) for change in report.changes],
        "fewest_gpus": None if fewest is None else {"hardware": _hardware(fewest[0]), **_change(fewest[1])},
        "assumptions": ASSUMPTIONS,
    }


def _hardware(hardware: Hardware) -> dict[str, Any]:
    return {"gpu": asdict(hardware.gpu), "per_node": hardware.per_node, "nodes": hardware.nodes}


def _change(change: Change) -> dict[str, Any]:
    return {"set": change.settings, "reason": change.reason, **_placement(change.placement)}


def _placement(placement: Placement) -> dict[str, Any]:
    from simplerl.environment import GIB
    from simplerl.estimate.memory import in_gib

    return {
        "fits": placement.fits,
        "placement": {"learners": placement.learners, "engines": placement.engines, "set": placement.settings},
        "memory_gib": {
            worker.role: {name: in_gib(parts) for name, parts in worker.phases.items()} for worker in placement.workers
        },
        "peak_gib": {worker.role: worker.peak / GIB for worker in placement.workers},
        "host_gib": placement.host_bytes / GIB,
        "seconds": {**asdict(placement.seconds), "step": placement.seconds.step},
    }


# --- text -------------------------------------------------------------------------------------------------------------


def _print(recipe: str, report: _Report) -> None:
    from simplerl.cli.dry_run import phase_rows
    from simplerl.estimate.memory import in_gib
    from simplerl.estimate.times import ASSUMPTIONS

    placement, tokens = report.placement, report.tokens
    say(f"{recipe} on {report.hardware}: {'fits' if placement.fits else 'does NOT fit'}")
    say(f"highest peak: {_peak(placement, report.hardware)}")
    say(f"placement: {_processes(placement)}")
    if placement.host_bytes:
        nodes = "the node" if report.hardware.nodes == 1 else "all nodes together"
        say(f"offloaded to the memory of {nodes}: {gib(placement.host_bytes)}")
    for worker in placement.workers:
        say(f"\nmemory of {_gpu_of(worker, 'each')}, GiB")
        say(table(phase_rows({phase: in_gib(parts) for phase, parts in worker.phases.items()}), indent="  "))
    rows = [row for change in report.changes for row in _change_rows(change.reason, change)]
    if report.fewest_gpus is not None:
        larger, change = report.fewest_gpus
        rows += _change_rows(f"{larger}, {change.reason}", change)
    if rows:
        say("\nchanges to try")
        say(table(rows, indent="  "))
    say(f"\nestimated time (mean tokens: prompt {tokens.prompt:,.0f}, response {tokens.response:,.0f})")
    say(table(_time_rows(placement, report.steps), indent="  "))
    say("\nassumptions")
    say("\n".join(f"  {line}" for line in ASSUMPTIONS))


def _peak(placement: Placement, hardware: Hardware) -> str:
    from simplerl.estimate.memory import USABLE

    worker = placement.largest_worker
    peak = f"{gib(worker.peak)} on {_gpu_of(worker, 'an' if worker.role == 'engine' else 'a')}"
    return f"{peak}, in {worker.peak_phase}; {USABLE:.0%} of the GPU's {gib(hardware.gpu.memory)} are usable"


def _gpu_of(worker: Worker, article: str) -> str:
    return "the GPU" if worker.role == "all" else f"{article} {worker.role}'s GPU"


def _processes(placement: Placement) -> str:
    if placement.single_process:
        return "learner and engine in one process"
    return f"{_counts(placement)} ({_set(placement.settings)})"


def _counts(placement: Placement) -> str:
    counts = ((placement.learners, "learner"), (placement.engines, "engine"))
    return " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts)


def _set(settings: Settings) -> str:
    return " ".join(f"--set {setting}" for setting in settings)


def _change_rows(reason: str, change: Change) -> list[Row]:
    placement, worker = change.placement, change.placement.largest_worker
    fits = "fits" if placement.fits else "does not fit"
    results = [f"{fits}: peak {gib(worker.peak)} in {worker.peak_phase}"]
    if not placement.single_process:
        results.append(_counts(placement))
    if placement.host_bytes:
        results.append(f"{gib(placement.host_bytes)} on the host")
    results.append(f"{rough_duration(placement.seconds.step)} per step")
    rows: list[Row] = [(reason, ", ".join(results))]
    return [*rows, ("", _set(change.settings))] if change.settings else rows


def _time_rows(placement: Placement, steps: int | None) -> list[Row]:
    seconds = placement.seconds
    rows: list[Row] = [(name.replace("_", " "), rough_duration(value)) for name, value in asdict(seconds).items()]
    run = "unknown, as is the number of steps"
    if steps is not None:
        run = f"{rough_duration(steps * seconds.step)} for {steps:,} steps"
    return [*rows, ("step", rough_duration(seconds.step)), ("run", run)]
