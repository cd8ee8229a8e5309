"""Before models are built: every node has the same releases, and learners' nodes share the run's folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.report import report
from simplerl.errors import ClusterError

PACKAGES = ("simplerl", "torch", "transformers")
WAIT = 60.0
"""Seconds in which a node must report; what it begins for that imports little."""
SHOWN = 8

FOLDER = {
    "missing": "does not see the run's folder {}",
    "another": "has another folder at {}, without the file that was written there a moment ago",
    "read-only": "may not write into the run's folder {}",
}
Report = Mapping[str, Any]


def check(
    place: Placement, folder: Path, engine_packages: Sequence[str], model: str, *, everywhere: bool = False
) -> None:
    """Raises `ClusterError` with every node that is silent, or differs from this process or the other engines' nodes.

    `engine_packages` are wanted where engines run, or `everywhere`; `model` is a folder that all must see, or empty.
    """
    learners, engines = place.nodes()
    path = folder.absolute()
    with token_in(path) as token:
        asked = ((*PACKAGES, *engine_packages), str(path), token, model)
        here, found = report(*asked), ray.on_each(learners | engines, report, *asked, seconds=WAIT)
    wanted = expected(here, [found[node] for node in found if node in engines], engine_packages)
    problems = [
        f"node {ray.host(node)} did not report within {WAIT:.0f} s; look at it, or take it out of the cluster"
        for node in sorted((learners | engines) & ray.nodes() - found.keys())
    ]
    for node, one in found.items():
        names = (*PACKAGES, *engine_packages) if everywhere or node in engines else PACKAGES
        problems += differences(one, wanted, ("python", *names))
        problems += unseen(one, path if node in learners else None, model)
    if problems:
        more = f"\nand {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ClusterError("\n".join(problems[:SHOWN]) + more)


@contextmanager
def token_in(folder: Path) -> Iterator[str]:
    """A file of a name that no other folder has; the name is its text."""
    token = f".shared-{secrets.token_hex(8)}"
    (folder / token).write_text(token, encoding="ascii")
    try:
        yield token
    finally:
        (folder / token).unlink(missing_ok=True)


def expected(here: Report, engines: Sequence[Report], engine_packages: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By package the host that sets its version, and that: this one, or an engine's where it is not installed here."""
    wanted = {}
    for one in (*reversed(engines), here):
        for name, version in one["versions"].items():
            if version is not None or name not in engine_packages:
                wanted[name] = one["host"], version
    return wanted


def differences(one: Report, wanted: Mapping[str, tuple[str, str]], names: Sequence[str]) -> list[str]:
    found = one["versions"]
    return [
        f"node {one['host']} has {name} {found[name] or 'not at all'}, {wanted[name][0]} has {wanted[name][1]}; "
        "install the same release on all"
        for name in names
        if name in wanted and found[name] != wanted[name][1]
    ]


def unseen(one: Report, folder: Path | None, model: str) -> list[str]:
    """Folders that are not what they are here; the run's is asked for where a learner writes into it."""
    problems = []
    if folder is not None and one["folder"] != "shared":
        problems.append(
            f"node {one['host']} {FOLDER[one['folder']].format(folder)}; learners write their parts of checkpoints "
            "there: put --run-dir on storage that all nodes mount at the same place"
        )
    if not one["model"]:
        problems.append(
            f"node {one['host']} does not see the model's folder, model.path={model}; put it on storage that all nodes "
            "mount at the same place, and name it by its full path"
        )
    return problems
