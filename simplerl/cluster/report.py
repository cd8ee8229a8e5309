"""What a process of a node finds there. Ray sends this module as code, so it must not import the package."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Sequence
from typing import Literal, TypedDict

FolderState = Literal["shared", "missing", "another", "read-only"]


class NodeReport(TypedDict):
    """One node as a process on it sees it."""

    host: str
    versions: dict[str, str | None]
    """Release of each package, and of Python. None: not installed."""
    folder: FolderState
    """The run's folder, see `folder_state`."""
    model: bool
    """True if the model's folder exists here, or the model is not a folder."""


def node_report(packages: Sequence[str], folder: str, token: str, model: str) -> NodeReport:
    """Report on this node. `folder` and `token`: see `folder_state`. `model`: a folder, or empty."""
    versions = {"python": platform.python_version()} | {name: installed_version(name) for name in packages}
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "folder": folder_state(folder, token),
        "model": not model or os.path.isdir(model),
    }


def installed_version(package: str) -> str | None:
    """The release, without a build's label such as +cu128. None: not installed."""
    try:
        if package == "simplerl":  # a checkout on the path is imported before an installed release
            return importlib.import_module(package).__version__
        return importlib.metadata.version(package).partition("+")[0]
    except (ImportError, AttributeError):
        return None


def folder_state(folder: str, token: str) -> FolderState:
    """State of a folder in which another node has written a file named `token` with its name as text.

    "another" is a folder of the same path without that file.
    """
    if not os.path.isdir(folder):
        return "missing"
    try:
        with open(os.path.join(folder, token), encoding="ascii") as file:
            is_same = file.read() == token
    except OSError:
        is_same = False
    if not is_same:
        return "another"
    return "shared" if os.access(folder, os.W_OK) else "read-only"
