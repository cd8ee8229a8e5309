"""Plug-ins are files: a new algorithm, reward, engine, data source or benchmark is one new module in its folder.

Nothing is registered. `load("rewards", "simplerl")` imports `simplerl/rewards/simplerl.py`; a user's own file outside
the package is named by its path. A plug-in with settings defines a class `Config`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

from simplerl.errors import ConfigError
from simplerl.formatting import did_you_mean

USER_MODULE_PREFIX = "simplerl_user_"
"""Prefix of the module names of users' own files."""

_SHARED = ("base", "shaping")
"""Modules that plug-ins of a kind share. They are no plug-ins; nor is a module whose name starts with an underscore."""

_FOLDERS = {
    "benchmarks": "simplerl.data.benchmarks",
    "data": "simplerl.data.sources",
    "optimizers": "simplerl.learner.optimizers",
    "teachers": "simplerl.distill.teachers",
}


def package_of(kind: str) -> str:
    """Name of the package whose modules are the plug-ins of a kind."""
    return _FOLDERS.get(kind, f"simplerl.{kind}")


def available(kind: str) -> list[str]:
    """Names of the shipped plug-ins of a kind, with dashes for the underscores of the file names."""
    package = importlib.import_module(package_of(kind))
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_") and name not in _SHARED)


def load(kind: str, name: str, path: str | Path | None = None) -> ModuleType:
    """Import a plug-in's module: the shipped `name`, or a user's own file at `path`.

    Raises `ConfigError` if it does not exist, with the nearest name and the list of available names.
    """
    if path is not None:
        return _load_file(kind, Path(path))
    names = available(kind)
    if name in names:
        return importlib.import_module(f"{package_of(kind)}.{name.replace('-', '_')}")
    folder = package_of(kind).replace(".", "/")
    raise ConfigError(
        f"{kind}: no {name!r}{did_you_mean(name, names)} Available: {', '.join(names)}. "
        f"A new one is a new file in {folder}/, or your own file named by `path`."
    )


def _load_file(kind: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{kind}: path={path} is not a file; looked in {Path.cwd()}")
    name = USER_MODULE_PREFIX + re.sub(r"\W", "_", str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{kind}: path={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
