"""`simplerl plan`: whether a recipe fits given GPUs, where its parts go, and how long a step would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simplerl.cli.console import say, say_json
from simplerl.cli.train import Overrides
from simplerl.errors import ConfigError
from simplerl.formatting import gib, rough_duration, table

if TYPE_CHECKING:
    from simplerl.estimate.changes import Change
    from simplerl.estimate.hardware import Hardware
    from simplerl.estimate.placement import Placement
    from simplerl.estimate.times import Tokens


def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `simplerl recipes`) or a path ending in .toml.")],
    gpus: Annotated[str, typer.Option(metavar="8xH100", help="GPUs of a node: their number and name.")],
    nodes: Annotated[int, typer.Option(help="Nodes with as many GPUs each.")] = 1,
    overrides: Overrides = None,
    mean_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens of a response; they decide the time, not the memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Memory of every phase on each GPU, what to change where it does not fit, a placement, and estimated times."""
    from simplerl.config import load_recipe
    from simplerl.estimate import times as model
    from simplerl.estimate.changes import changes, enough
    from simplerl.estimate.hardware import parse_hardware
    from simplerl.estimate.placement import best
    from simplerl.estimate.shapes import known_shape

    hardware = parse_hardware(gpus, nodes)
    loaded = load_recipe(recipe, overrides or ())
    shape = known_shape(loaded.model.path)
    if shape is None:
        raise ConfigError(
            f"model.path={loaded.model.path}: its sizes are not known here; name a folder with its config.json, "
            "or a model like it"
        )
    tokens = model.mean_tokens(loaded, mean_tokens)
    found = best(loaded, shape, hardware, tokens)
    tried = [] if found.fits else changes(loaded, found, shape, hardware, tokens)
    more = None if found.fits else enough(loaded, shape, hardware, tokens)
    told = _Told(hardware, tokens, found, tried, more, _steps(found))
    if as_json:
        say_json(_as_dict(told))
    else:
        _print(recipe, told)


@dataclass(frozen=True, slots=True)
class _Told:
    """What is printed."""

    hardware: Hardware
    tokens: Tokens
    found: Placement
    changes: list[Change]
    enough: tuple[Hardware, Change] | None
    steps: int | None


def _steps(found: Placement) -> int | None:
    from simplerl.cli.dry_run import count_problems
    from simplerl.estimate.overview import make_plan

    return make_plan(found.recipe, count_problems(found.recipe)).steps


def _as_dict(told: _Told) -> dict[str, Any]:
    from simplerl.environment import GIB
    from simplerl.estimate.memory import USABLE
    from simplerl.estimate.times import ASSUMPTIONS

    found, steps = told.found, told.steps
    return {
        "hardware": _gpus(told.hardware),
        "usable_gib": USABLE * told.hardware.gpu.memory / GIB,
        **_placement(found),
        "mean_tokens": asdict(told.tokens),
        "steps": steps,
        "hours": None if steps is None else steps * found.seconds.step / 3600,
        "changes": [_change(each) for each in told.changes],
        "enough": None if told.enough is None else {"hardware": _gpus(told.enough[0]), **_change(told.enough[1])},
        "assumptions": ASSUMPTIONS.splitlines(),
    }


def _gpus(hardware: Hardware) -> dict[str, Any]:
    return {"gpu": asdict(hardware.gpu), "per_node": hardware.per_node, "nodes": hardware.nodes}


def _change(change: Change) -> dict[str, Any]:
    return {"set": change.settings, "why": change.why, **_placement(change.placement)}


def _placement(found: Placement) -> dict[str, Any]:
    from simplerl.environment import GIB
    from simplerl.estimate.memory import in_gib

    return {
        "fits": found.fits,
        "placement": {"learners": found.learners, "engines": found.engines, "set": found.settings},
        "memory_gib": {
            worker.role: {name: in_gib(parts) for name, parts in worker.phases.items()} for worker in found.workers
        },
        "peak_gib": {worker.role: worker.peak / GIB for worker in found.workers},
        "host_gib": found.host / GIB,
        "seconds": {**asdict(found.seconds), "step": found.seconds.step},
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _print(recipe: str, told: _Told) -> None:
    from simplerl.cli.dry_run import phase_rows
    from simplerl.estimate.memory import in_gib
    from simplerl.estimate.times import ASSUMPTIONS

    found, tokens = told.found, told.tokens
    say(f"{recipe} on {told.hardware}: {_verdict(found, told.hardware)}")
    say(_where(found))
    if found.host:
        say(f"in the memory of {'the node' if told.hardware.nodes == 1 else 'all nodes together'}: {gib(found.host)}")
    for worker in found.workers:
        name = "the GPU" if worker.role == "all" else f"each {worker.role}'s GPU"
        say(f"\nmemory of {name}, GiB")
        say(table(phase_rows({phase: in_gib(parts) for phase, parts in worker.phases.items()}), indent="  "))
    rows = [row for each in told.changes for row in _change_rows(each.why, each, found)]
    if told.enough is not None:
        more, change = told.enough
        rows += _change_rows(f"{more}, {change.why}", change, found)
    if rows:
        say("\nwhat to change")
        say(table(rows, indent="  "))
    say(f"\nestimated time; a prompt has {tokens.prompt:,.0f} tokens on average, a response {tokens.response:,.0f}")
    say(table(_time_rows(found, told.steps), indent="  "))
    say("\nassumed")
    say("\n".join(f"  {line}" for line in ASSUMPTIONS.splitlines()))


def _verdict(found: Placement, hardware: Hardware) -> str:
    from simplerl.estimate.memory import USABLE

    worker = found.largest
    where = "" if worker.role == "all" else f" of a{'n' if worker.role == 'engine' else ''} {worker.role}"
    room = f"of {gib(hardware.gpu.memory)}, {USABLE:.0%} of which may be planned for"
    fits = "fits" if found.fits else "does NOT fit"
    return f"{fits}; peak{where} {gib(worker.peak)} ({worker.peak_phase}) {room}"


def _where(found: Placement) -> str:
    if found.together:
        return "one process with learner and engine"
    counts = (
        f"{n} {name}{'s' if n > 1 else ''}" for n, name in ((found.learners, "learner"), (found.engines, "engine"))
    )
    return f"{' and '.join(counts)}: {_set(found.settings)}"


def _set(settings: tuple[str, ...]) -> str:
    return " ".join(f"--set {each}" for each in settings)


def _change_rows(why: str, change: Change, before: Placement) -> list[tuple[str, ...]]:
    found, worker = change.placement, change.placement.largest
    outcome = "fits" if found.fits else "does not fit"
    peak = f"{outcome}: {gib(worker.peak)} ({worker.peak_phase}) instead of {gib(before.largest.peak)}"
    split = "" if found.together else f", {found.learners} + {found.engines}"
    host = f", {gib(found.host)} on the host" if found.host else ""
    rows = [(why, f"{peak}{split}{host}, {rough_duration(found.seconds.step)} a step")]
    return [*rows, ("", _set(change.settings))] if change.settings else rows


def _time_rows(found: Placement, steps: int | None) -> list[tuple[str, ...]]:
    seconds = found.seconds
    rows = [(name.replace("_", "-"), rough_duration(value)) for name, value in asdict(seconds).items()]
    rows.append(("a step", rough_duration(seconds.step)))
    if steps is None:
        return [*rows, ("the run", "unknown: so is the number of steps")]
    return [*rows, ("the run", f"{rough_duration(steps * seconds.step)}, {steps:,} steps")]
