"""`simplerl drill`."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from simplerl.cli.console import say, say_note
from simplerl.cli.train import Overrides
from simplerl.errors import ClusterError, ConfigError
from simplerl.formatting import table, with_bounds

SETTINGS = (
    "cluster.learners=2",
    "cluster.engines=2",
    "cluster.heartbeat_timeout=10",
    "cluster.restarts=1000",
    "checkpoint.every=1",
)


def drill(
    recipe: Annotated[str, typer.Argument(help="A recipe of `simplerl train`, small enough for this machine.")],
    faults: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    kinds: Annotated[str | None, typer.Option(help="Of which kinds, separated by commas (default: all).")] = None,
    seed: Annotated[int, typer.Option(help="Of the order and the moments of faults.")] = 0,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="A new folder for the runs (default: a temporary one).")] = None,
) -> None:
    """Train on two Ray nodes of this machine while engines, learners, nodes, the driver and files are lost.

    Then train once more, in one process and undisturbed, and compare every response.
    """
    from simplerl.config import Recipe, load_recipe
    from simplerl.tools.drill import Drill
    from simplerl.train.run import train

    folder = run_dir or Path(tempfile.mkdtemp(prefix="simplerl-drill-"))
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder with --run-dir")
    settings = [*SETTINGS, *(overrides or ())]
    loaded = load_recipe(recipe, [*(overrides or ()), "checkpoint.every=1"])
    if not isinstance(loaded, Recipe):
        raise ConfigError(f"{recipe} is not a recipe of `simplerl train`")
    wanted = _chosen(kinds, Drill.kinds(), faults, seed)
    if "checkpoint torn" in wanted and loaded.checkpoint.keep < 2:
        raise ConfigError("a torn checkpoint leaves nothing of checkpoint.keep=1; keep 2, or name other --kinds")
    rehearsal = Drill([recipe, *(part for each in settings for part in ("--set", each))], folder / "broken", seed)
    rehearsal.run(wanted, say_note)
    say(table([("kind", "faults", "seconds to the next step, median"), *_rows(rehearsal.faults)]))
    say_note("once more, undisturbed, in one process")
    train(loaded, folder / "whole", plain=True)
    check_accounts(folder / "broken", folder / "whole")
    say(compared(folder / "broken", folder / "whole"))


def _chosen(given: str | None, known: list[str], count: int, seed: int) -> list[str]:
    chosen = known if given is None else [each.strip().replace("-", " ") for each in given.split(",")]
    if unknown := [each for each in chosen if each not in known]:
        raise ConfigError(f"--kinds: no {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    kinds = [chosen[number % len(chosen)] for number in range(count)]
    random.Random(seed).shuffle(kinds)
    return kinds


def _rows(faults: list[Any]) -> list[tuple[str, ...]]:
    counts = Counter(fault.kind for fault in faults)
    seconds = {kind: median(fault.seconds for fault in faults if fault.kind == kind) for kind in counts}
    return [(kind, str(count), f"{seconds[kind]:.1f}") for kind, count in sorted(counts.items())]


def check_accounts(broken: Path, whole: Path) -> None:
    """Every step asked the same problems as often as in the undisturbed run. Raises `ClusterError` where not."""
    import pyarrow.parquet as pq

    from simplerl.storage.records import RunFolder

    one, other = RunFolder(broken), RunFolder(whole)
    steps, expected = ([row["step"] for row in each.read_metrics()] for each in (one, other))
    files, others = dict(one.rollout_files()), dict(other.rollout_files())
    if not steps == expected == list(files) == list(others):
        raise ClusterError(f"{broken}: the steps recorded are {steps}, {len(expected)} were expected")
    total = 0
    for step in steps:
        tables = (pq.read_table(each[step], columns=["problem_id", "sample_index"]) for each in (files, others))
        found, asked = (Counter(map(tuple, map(dict.values, table.to_pylist()))) for table in tables)
        if odd := (found - asked) + (asked - found):
            raise ClusterError(
                f"{broken}: step {step} has {found.total()} responses, {asked.total()} were requested; "
                f"{odd.total()} differ, the first is {next(iter(odd))}"
            )
        total += found.total()
    say(f"{len(steps)} steps, {total:,} responses: each asked for once and there once")


def compared(broken: Path, whole: Path) -> str:
    """How alike the two runs are, in words."""
    import pyarrow.parquet as pq

    from simplerl.storage.records import RunFolder

    one, other = RunFolder(broken), RunFolder(whole)
    same, total, first = 0, 0, None
    for (step, path), (_, second) in zip(one.rollout_files(), other.rollout_files(), strict=True):
        texts, others = (pq.read_table(each, columns=["text"])["text"].to_pylist() for each in (path, second))
        equal = sum(a == b for a, b in zip(texts, others, strict=True))
        same, total = same + equal, total + len(texts)
        if equal < len(texts) and first is None:
            first = step
    lines = [
        f"{same:,} of {total:,} responses are the same" + ("" if first is None else f"; they part in step {first}")
    ]
    for row, second in zip(one.read_evals(), other.read_evals(), strict=True):
        lines.append(
            f"{row['set']} after step {row['step']}, temperature {row['temperature']:g}: {_interval(row)} broken, "
            f"{_interval(second)} undisturbed"
        )
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    return f"{with_bounds(row['accuracy'], row['accuracy_low'], row['accuracy_high'])} %"
