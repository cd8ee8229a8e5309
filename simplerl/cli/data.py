"""`simplerl data`: the training sets and benchmarks, where they are, and what is in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Everything else is imported when a command runs: `simplerl --help` has to be fast.
if TYPE_CHECKING:
    from simplerl.data.overlap import Match
    from simplerl.types import Problem

app = typer.Typer(no_args_is_help=True, help="Training sets and benchmarks: list, fetch, look at, check, export.")

Name = Annotated[str, typer.Argument(help="A training set or a benchmark, see `simplerl data list`.")]
Source = Annotated[str, typer.Argument(help="A training set, see `simplerl data list`.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the training set, for example --set data_path=my.jsonl --set keys.question=problem.",
    ),
]


@app.command("list")
def list_sets(as_json: Json = False) -> None:
    """The training sets and benchmarks there are, their sizes, and where each would be read from."""
    rows = [_entry("source", name) for name in _source_names()]
    rows += [_entry("benchmark", name) for name in _benchmark_names()]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        short = [{**row, "what": row["what"].partition(":")[0].rstrip(".")} for row in rows]
        _print_table(("name", "kind", "problems", "what", "where"), [[*row.values()] for row in short])


@app.command()
def prepare(
    name: Name,
    accept: Annotated[
        bool, typer.Option(help="Keep rows of the hub that differ from the published set's checksum.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a published set into the local cache and check it. A name of both kinds fetches both."""
    from simplerl.data import store
    from simplerl.data.base import stored_sets

    sets = [stored for module in _modules(name) for stored in stored_sets(module)]
    done = [(item, store.prepare(item, accept=accept)) for item in sets]
    if as_json:
        records = [
            {
                "name": s.name,
                "kind": s.kind,
                "path": str(p.path),
                "rows": p.rows,
                "origin": p.origin,
                "pinned": p.pinned,
            }
            for s, p in done
        ]
        print(json.dumps(records, indent=2))
        return
    for item, found in done:
        verdict = "as published" if found.pinned else "NOT as published, accepted"
        print(f"{item.name} ({item.kind}): {found.rows:,} problems from {found.origin}, {verdict}: {found.path}")
    if not done:
        print(f"{name}: nothing to fetch, it is generated or read when it is used")


@app.command()
def show(
    name: Name,
    n: Annotated[int, typer.Option("--n", min=1, help="How many problems.")] = 3,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="The benchmark, where a training set has the same name.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """The first problems of a set, as training or evaluation sees them."""
    problems = _load(name, benchmark, settings or [])
    if as_json:
        keys = ("id", "question", "answer", "level", "subject", "source")
        print(json.dumps([{key: getattr(p, key) for key in keys} for p in problems[:n]], indent=2, ensure_ascii=False))
        return
    print(f"{name}: {len(problems):,} problems")
    for problem in problems[:n]:
        about = ", ".join(filter(None, (problem.subject, f"level {problem.level}" if problem.level else None)))
        print(f"\n{problem.id}" + (f" ({about})" if about else ""))
        print(f"{problem.question}\nanswer: {problem.answer}")


@app.command()
def overlap(
    name: Source,
    fetch: Annotated[bool, typer.Option(help="Fetch benchmarks that are not on this machine from the hub.")] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Problems of a training set that occur in a benchmark: exactly, but for format, or by 13 words in a row.

    Looks at the set as published, including what training drops. Benchmarks that are missing are named on stderr.
    """
    from simplerl.data.base import load_source, source_config
    from simplerl.data.overlap import count, find_overlap

    problems = load_source(source_config(name, settings or []))
    benchmarks, missing = _load_benchmarks(fetch)
    for line in missing:
        print(f"unchecked: {line}", file=sys.stderr)
    matches = find_overlap(problems, benchmarks)
    if as_json:
        print(json.dumps(_overlap_report(name, problems, benchmarks, missing, matches), indent=2))
        return
    print(f"{name}: {len(problems):,} problems against {len(benchmarks)} benchmarks")
    table = count(matches)
    _print_table(("benchmark", *table["any"]), [[row, *cells.values()] for row, cells in table.items()])


@app.command()
def export(
    name: Source,
    format_name: Annotated[str, typer.Option("--format", help="File format: openrlhf.")] = "openrlhf",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None,
    settings: Set = None,
) -> None:
    """Write a training set as published, in the format of another tool. Nothing but the file goes to stdout."""
    from simplerl import plugins
    from simplerl.data.base import load_source, source_config
    from simplerl.data.export import export as render
    from simplerl.storage import atomic

    config = source_config(name, settings or [])
    blob_id = getattr(plugins.load("data", name, config.path), "ORIGINAL_BLOB", None)
    content = render(load_source(config), format_name, blob_id)
    if out is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        atomic.write_bytes(out, content)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _source_names() -> list[str]:
    from simplerl import plugins

    return plugins.available("data")


def _benchmark_names() -> list[str]:
    from simplerl.data.base import benchmark_names

    return benchmark_names()


def _is_benchmark(name: str) -> bool:
    return name.replace("_", "-") in {known.replace("_", "-") for known in _benchmark_names()}


def _modules(name: str) -> list[Any]:
    """The plug-ins of a name: a training set, a benchmark, or one of each."""
    from simplerl import plugins
    from simplerl.data.base import benchmark_module

    benchmarks = [benchmark_module(name)] if _is_benchmark(name) else []
    sources = [plugins.load("data", name)] if name in _source_names() or not benchmarks else []
    return sources + benchmarks


def _entry(kind: str, name: str) -> dict[str, Any]:
    from simplerl import plugins
    from simplerl.data.base import benchmark_module, stored_sets
    from simplerl.data.store import whereabouts

    module = plugins.load("data", name) if kind == "source" else benchmark_module(name)
    places = list(dict.fromkeys(whereabouts(stored) for stored in stored_sets(module)))
    return {
        "name": name,
        "kind": kind,
        "problems": module.SET.size if hasattr(module, "SET") else None,
        "what": (module.__doc__ or "").partition("\n")[0],
        "where": ", ".join(places) or ("generated" if name.startswith("arithmetic") else "yours"),
    }


def _load(name: str, benchmark: bool, settings: Sequence[str]) -> list[Problem]:
    from simplerl.data.base import load_benchmark, load_problems, source_config

    if benchmark or (_is_benchmark(name) and name not in _source_names()):
        return load_benchmark(name)
    problems, notices = load_problems(source_config(name, settings))
    for notice in notices:
        print(notice, file=sys.stderr)
    return problems


def _load_benchmarks(fetch: bool) -> tuple[dict[str, list[Problem]], list[str]]:
    """Every benchmark that can be had, and a line for each that cannot."""
    from simplerl.data.base import load_benchmark
    from simplerl.data.store import MissingError

    found: dict[str, list[Problem]] = {}
    missing: list[str] = []
    for name in _benchmark_names():
        try:
            found[name] = load_benchmark(name, fetch=fetch)
        except MissingError as error:
            missing.append(str(error))
    return found, missing


def _overlap_report(
    name: str,
    problems: Sequence[Problem],
    benchmarks: dict[str, list[Problem]],
    missing: list[str],
    matches: list[Match],
) -> dict[str, Any]:
    from dataclasses import asdict

    from simplerl.data.overlap import count

    return {
        "name": name,
        "problems": len(problems),
        "benchmarks": {key: len(tests) for key, tests in benchmarks.items()},
        "unchecked": missing,
        "counts": count(matches),
        "matches": [asdict(match) for match in matches],
    }


def _print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    Console().print(table)
