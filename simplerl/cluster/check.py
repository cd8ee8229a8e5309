"""Checks of a cluster's nodes before models are loaded: equal releases, and a run folder that learners share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.report import NodeReport, node_report
from simplerl.errors import ClusterError

PACKAGES = ("simplerl", "torch", "transformers")
"""Packages whose releases must be equal on every node."""

REPORT_TIMEOUT = 60.0
"""Seconds in which a node must report. The process started for that imports no large package."""

MAX_PROBLEMS_SHOWN = 8

FOLDER_PROBLEMS = {
    "missing": "does not see the run's folder {}",
    "another": "has another folder at {}, without the file that this run has just written there",
    "read-only": "may not write into the run's folder {}",
}


def check_nodes(
    placement: Placement, folder: Path, engine_packages: Sequence[str], model: str, *, everywhere: bool = False
) -> None:
    """Compare every node with this process, and engines' nodes with each other.

    `engine_packages` are compared on engines' nodes, or with `everywhere` on all. `model` is a folder that every node
    must see, or empty. Raises `ClusterError` with a line per problem; a node that does not report is one.
    """
    learners, engines = placement.nodes()
    path = folder.absolute()
    with token_file(path) as token:
        arguments = ((*PACKAGES, *engine_packages), str(path), token, model)
        here = node_report(*arguments)
        reports = ray.run_on_nodes(learners | engines, node_report, *arguments, seconds=REPORT_TIMEOUT)
    expected = expected_versions(here, [reports[node] for node in reports if node in engines], engine_packages)
    problems = [
        f"node {ray.host_name(node)} did not report within {REPORT_TIMEOUT:.0f} s; check it, or remove it from the "
        "cluster"
        for node in sorted((learners | engines) & ray.alive_nodes() - reports.keys())
    ]
    for node, report in reports.items():
        names = (*PACKAGES, *engine_packages) if everywhere or node in engines else PACKAGES
        problems += version_problems(report, expected, ("python", *names))
        problems += folder_problems(report, path if node in learners else None, model)
    if problems:
        more = f"\nand {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
        raise ClusterError("\n".join(problems[:MAX_PROBLEMS_SHOWN]) + more)


@contextmanager
def token_file(folder: Path) -> Iterator[str]:
    """Write a file with a random name, and its name as text, into a folder; give the name, and delete the file."""
    token = f".shared-{secrets.token_hex(8)}"
    (folder / token).write_text(token, encoding="ascii")
    try:
        yield token
    finally:
        (folder / token).unlink(missing_ok=True)


def expected_versions(
    here: NodeReport, engines: Sequence[NodeReport], engine_packages: Sequence[str]
) -> dict[str, tuple[str, str | None]]:
    """The release that every node must have, by package, after the host that has it.

    That host is this one, or an engine's node for engine packages that are not installed here.
    """
    expected = {}
    for report in (*reversed(engines), here):
        for name, version in report["versions"].items():
            if version is not None or name not in engine_packages:
                expected[name] = report["host"], version
    return expected


def version_problems(
    report: NodeReport, expected: Mapping[str, tuple[str, str | None]], names: Sequence[str]
) -> list[str]:
    """A line for each package of which a node has another release."""
    problems = []
    for name in names:
        found = report["versions"][name]
        if name in expected and found != expected[name][1]:
            own = f"no {name}" if found is None else f"{name} {found}"
            host, version = expected[name]
            problems.append(
                f"node {report['host']} has {own}, {host} has {version}; install the same release on all nodes"
            )
    return problems


def folder_problems(report: NodeReport, folder: Path | None, model: str) -> list[str]:
    """A line for each folder that a node does not see as this process does. `folder` None: no learner runs there."""
    problems = []
    if folder is not None and report["folder"] != "shared":
        problems.append(
            f"node {report['host']} {FOLDER_PROBLEMS[report['folder']].format(folder)}; learners write their shards of "
            "checkpoints there: put --run-dir on storage that all nodes mount at the same path"
        )
    if not report["model"]:
        problems.append(
            f"node {report['host']} does not see the model's folder, model.path={model}; put it on storage that all "
            "nodes mount at the same path, and set model.path to its full path"
        )
    return problems
