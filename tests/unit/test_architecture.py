"""Imports point down, heavy packages stay where they belong, nothing unpickles or evaluates text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "simplerl"
pytestmark = pytest.mark.unit

# Bottom first. A part imports from lower layers only, and within itself.
LAYERS = (
    {"types", "errors", "seeding", "formatting", "progress", "cpu_sizes"},
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
KERNEL_TESTS = ("tests/parity/test_kernels.py",)
"""Files outside `simplerl/cpu` that may import its submodules."""
SANDBOXED = "simplerl.verifiers.python_tests.worker"
"""Runs programs in processes of its own."""
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
PLUGINS = ("algorithms", "engines", "learner.optimizers", "rewards", "verifiers")
LIGHT = ("simplerl.learner.optimizers",)
"""Without torch, inside of what needs it: reading a recipe imports them."""


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


def seam_of(package: Path) -> set[str]:
    """Names in the `__all__` of a package."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return set()


def outside_cpu() -> Iterator[tuple[str, ast.Module]]:
    """Files of the package, the tests and the benchmarks that see `simplerl.cpu` from outside."""
    root = PACKAGE.parent
    for folder in ("simplerl", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith("simplerl/cpu/") and name not in KERNEL_TESTS:
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def beyond_seam(tree: ast.Module, seam: set[str]) -> Iterator[str]:
    """What a file takes from `simplerl.cpu` that is not in `seam`."""
    imported = set(imports(tree))
    for target in imported:
        if target.startswith("simplerl.cpu.") and target.removeprefix("simplerl.cpu.") not in seam:
            yield target
    if "simplerl.cpu" in imported:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cpu", "simplerl.cpu"):
                yield from () if node.attr in seam else (f"simplerl.cpu.{node.attr}",)


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules of which each reaches every other one."""
    reached = {name: reachable(graph, name) for name in graph}
    mutual = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return {group for group in mutual if group}


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


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


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions and for type checking count too."""
    trees = dict(modules())
    graph = {name: {t for target in imports(tree) if (t := nearest(target, trees))} for name, tree in trees.items()}
    assert circles(graph) == set()


def nearest(target: str, known: Container[str]) -> str | None:
    """The module that an imported name is in, or is; None: it is not in the package."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target if target != "simplerl" else None


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == {frozenset("bc"), frozenset("d")}


def test_only_the_seam_of_cpu_is_imported() -> None:
    seam = seam_of(PACKAGE / "cpu")
    assert {"CPUThreads", "FusedDecoder", "fuse_for_training"} <= seam
    assert not seam & {path.stem for path in (PACKAGE / "cpu").glob("*.py")}
    wrong = [f"{name} imports {target}" for name, tree in outside_cpu() for target in beyond_seam(tree, seam)]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        "from simplerl.cpu import ops",
        "from simplerl.cpu.library import library",
        "import simplerl.cpu.ops",
        "from simplerl import cpu\ncpu.ops.swiglu(x)",
        "def f():\n    import simplerl.cpu\n    simplerl.cpu.library",
    ],
)
def test_what_goes_around_the_seam_is_found(code: str) -> None:
    assert list(beyond_seam(ast.parse(code), {"CPUThreads"}))
    assert not list(beyond_seam(ast.parse("from simplerl import cpu\ncpu.CPUThreads(2)"), {"CPUThreads"}))


def test_plugins_of_one_kind_do_not_know_each_other() -> None:
    """A plug-in imports `base`, modules with a leading underscore (no plug-ins), and the modules of its own folder."""
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imports(tree)
        for kind in PLUGINS
        if name.startswith(f"simplerl.{kind}.") and target.startswith(f"simplerl.{kind}.")
        for own_folder in [name.removeprefix(f"simplerl.{kind}.").split(".")[0] + "."]
        if not target.removeprefix(f"simplerl.{kind}.").startswith(("base", "_", own_folder))
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
        assert not FORBIDDEN & {target.split(".")[0] for target in imports(tree)}, name
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not {"eval", "exec"} & called or name == SANDBOXED, name


def test_settings_data_and_reports_load_no_torch() -> None:
    """Import time is all of the start-up time of `simplerl --help`, of a report, and of a verifier's process."""
    named = [name for name, _ in modules() if "._" not in name]
    free = [name for name in named if name.startswith(LIGHT) or not name.startswith(WITH_TORCH)]
    code = f"""
import importlib, sys
for name in {free!r}:
    importlib.import_module(name)
    heavy = {{"torch", "transformers", "vllm", "ray", "scipy"}} & set(sys.modules)
    assert not heavy, f"{{name}} loads {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
