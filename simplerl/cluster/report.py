"""What a process of a node finds there. It is sent by value: nothing of this package may be imported on the way."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Sequence
from typing import Any


def report(packages: Sequence[str], folder: str, token: str, model: str) -> dict[str, Any]:
    """Host name, versions, what the run's folder is from here (see `state`), and whether the model's is there.

    The file `token` of the run's folder holds its own name. An empty `model` needs no folder.
    """
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "folder": state(folder, token),
        "model": not model or os.path.isdir(model),
    }


def version(package: str) -> str | None:
    """The release without a build's label, such as +cu128; None where it is not installed."""
    try:
        if package == "simplerl":  # a checkout on the path counts, not what is installed beside it
            return importlib.import_module(package).__version__
        return importlib.metadata.version(package).partition("+")[0]
    except (ImportError, AttributeError):
        return None


def state(folder: str, token: str) -> str:
    """ "shared", "missing", "another" folder of the same name, or "read-only"."""
    if not os.path.isdir(folder):
        return "missing"
    try:
        with open(os.path.join(folder, token), encoding="ascii") as file:
            same = file.read() == token
    except OSError:
        same = False
    if not same:
        return "another"
    return "shared" if os.access(folder, os.W_OK) else "read-only"
