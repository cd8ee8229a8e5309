"""Imports point down, heavy packages stay where they belong, nothing unpickles or evaluates text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "simplerl"
pytestmark = pytest.mark.unit

# Bottom first. A part imports from lower layers only, and within itself.
LAYERS = (
    {"types", "errors", "seeding", "formatting", "cpu_sizes"},
    {"plugins", "batch", "cpu"},
    {"config", "losses"},
    {"storage", "environment", "http", "stats"},
    {"data", "verifiers"},
    {"algorithms", "engines", "learner", "rewards", "pretrain"},
    {"rollouts"},
    {"cluster", "evaluation"},
    {"estimate", "report"},
    {"train", "distill"},
    {"pipeline", "profiling"},
    {"tools"},
    {"cli"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
ONLY_IN = {
    "vllm": ("simplerl.engines.vllm", "simplerl.engines._vllm"),
    "ray": ("simplerl.cluster", "simplerl.tools.drill"),
}
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "joblib"}
WITH_TORCH = (
    "simplerl.batch",
    "simplerl.losses",
    "simplerl.cpu",
    "simplerl.learner",
    "simplerl.rollouts",
    "simplerl.cluster",
    "simplerl.train",
    "simplerl.evaluation",
    "simplerl.profiling.profile",
)
PLUGINS = ("algorithms", "engines", "rewards", "verifiers")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    return [*module.split("."), ""][1]


def own(module: str) -> bool:
    return module.split(".")[0] == "simplerl"


def test_every_part_has_a_layer() -> None:
    found = {part(name) for name, _ in modules()} - {""}
    assert found == set(RANK)


def test_imports_point_down() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        if own(target) and part(target) in RANK and part(target) != part(name) and part(name)
        if RANK[part(target)] >= RANK[part(name)]
    ]
    assert wrong == []


def test_plugins_of_one_kind_do_not_know_each_other() -> None:
    """A plug-in imports `base`, modules with a leading underscore (no plug-ins), and the modules of its own folder."""
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        for kind in PLUGINS
        if name.startswith(f"simplerl.{kind}.") and target.startswith(f"simplerl.{kind}.")
        if not target.removeprefix(f"simplerl.{kind}.").startswith(("base", "_", name.split(".")[2] + "."))
    ]
    assert wrong == []


def test_heavy_packages_stay_in_their_place() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        for package, place in ONLY_IN.items()
        if target.split(".")[0] == package and not name.startswith(place)
    ]
    assert wrong == []


def test_nothing_unpickles_or_evaluates_text() -> None:
    for name, tree in modules():
        if name == "simplerl.verifiers.python_tests.worker":
            continue  # runs programs in its sandbox, and is never imported
        assert not FORBIDDEN & {target.split(".")[0] for target in imports(tree)}, name
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not {"eval", "exec"} & called, name


def test_settings_data_and_reports_load_no_torch() -> None:
    """Import time is all of the start-up time of `simplerl --help`, of a report, and of a verifier's process."""
    free = [name for name, _ in modules() if not name.startswith(WITH_TORCH) and "._" not in name]
    code = f"""
import importlib, sys
for name in {free!r}:
    importlib.import_module(name)
    heavy = {{"torch", "transformers", "vllm", "ray", "scipy"}} & set(sys.modules)
    assert not heavy, f"{{name}} loads {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
