"""Mutation testing: change one operator, constant or statement at a time and see whether a test fails.

    python scripts/mutate.py [ROOM ...] [--at FILE:LINE] [--jobs 2] [--sample N] [--list]

Prints the mutants that no test notices. The tests of each room are those in `ROOMS`, its fast ones. Not part of CI; the
figures are in docs/benchmarks/mutation.md.

Every mutant runs in a forked process, where torch is loaded already; the changed module exists only there, no file is
written. A mutant counts as killed if a test fails, if the module no longer imports, or after five times the CPU time of
the unchanged code.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "algorithms": ("tests/parity/test_algorithms.py",),
    "batch": ("tests/unit/test_layouts.py", "tests/unit/test_batch.py", "tests/parity/test_turns.py"),
    "losses": (
        "tests/parity/test_logprobs.py",
        "tests/parity/test_losses.py",
        "tests/parity/test_advantages.py",
        "tests/parity/test_algorithms.py",
    ),
    "rewards": ("tests/unit/test_rewards.py", "tests/unit/test_http.py"),
}
"""Rooms of the package and the tests that know them, in the order in which they run."""

PRELOADED = (
    "torch",
    "numpy",
    "pytest",
    "hypothesis",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.modeling_utils",
    "httpx2",
    "simplerl.config",
)
"""Imported once, before anything is forked. Nothing here may import a room."""

# --- mutations --------------------------------------------------------------------------------------------------------

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = (("min", "max"), ("minimum", "maximum"), ("any", "all"), ("sum", "mean"), ("clamp_min", "clamp_max"))
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
DROPPED_CALLS = {"detach", "abs", "reversed", "sorted", "square", "exp", "log", "float"}
NOT_ENTERED = ("annotation", "returns", "decorator_list")
"""Parts of a node that say nothing about what is computed."""


@dataclass(frozen=True)
class Mutant:
    """One change of a file. `apply` makes it in the file's tree, for good: call it in a process of its own."""

    path: Path
    line: int
    change: str
    apply: Callable[[], None]

    def __str__(self) -> str:
        source = self.path.read_text(encoding="utf-8").splitlines()[self.line - 1].strip()
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.change:30}  in  {source}"


def mutants_of(path: Path, tree: ast.Module) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its lines."""

    def replace(parent: ast.AST, field: str, index: int | None, new: ast.AST) -> Callable[[], None]:
        def apply() -> None:
            if index is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[index] = new

        return apply

    for parent, field, index, node, in_function in nodes(tree):
        for new, change in replacements(parent, node, in_function):
            line = getattr(node, "lineno", getattr(parent, "lineno", 1))
            yield Mutant(path, line, change, replace(parent, field, index, new))


def nodes(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, bool]]:
    """(parent, field, index in it, node, inside a function) of every node that may be changed."""
    for field, value in ast.iter_fields(node):
        if field in NOT_ENTERED:
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or not changes_what_is_computed(child):
                continue
            yield node, field, index if isinstance(value, list) else None, child, in_function
            if not isinstance(child, ast.Raise):
                yield from nodes(child, in_function or isinstance(child, ast.FunctionDef))


def changes_what_is_computed(node: ast.AST) -> bool:
    """False for docstrings, imports, messages, and assertions, which hold by construction."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id != "TYPE_CHECKING"
    return not isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr)


def replacements(parent: ast.AST, node: ast.AST, in_function: bool) -> Iterator[tuple[ast.AST, str]]:
    """What may stand in a node's place."""
    for other in OPERATORS.get(type(node), ()):
        yield other(), f"{type(node).__name__} -> {other.__name__}"
    if isinstance(node, ast.UnaryOp):
        yield node.operand, f"no {type(node.op).__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value), f"{node.value} -> {not node.value}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        for step in (1, -1):
            yield ast.Constant(node.value + step), f"{node.value} -> {node.value + step}"
    if isinstance(node, ast.Call):
        yield from call_replacements(node)
    test = getattr(parent, "test", None) is node or (isinstance(parent, ast.comprehension) and node in parent.ifs)
    if test and isinstance(node, ast.expr) and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node), "condition negated"
    dropped = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return | ast.Raise
    if in_function and isinstance(node, dropped):
        yield ast.copy_location(ast.Pass(), node), f"no {type(node).__name__}"


def call_replacements(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    function, keywords = node.func, node.keywords
    if isinstance(function, ast.Name) and function.id in NAMES:
        yield (
            ast.Call(ast.Name(NAMES[function.id], ast.Load()), node.args, keywords),
            f"{function.id} -> {NAMES[function.id]}",
        )
    if isinstance(function, ast.Name) and function.id in DROPPED_CALLS:
        yield node.args[0], f"no {function.id}()"
    if isinstance(function, ast.Attribute) and function.attr in NAMES:
        other = ast.Attribute(function.value, NAMES[function.attr], ast.Load())
        yield ast.Call(other, node.args, keywords), f"{function.attr} -> {NAMES[function.attr]}"
    if isinstance(function, ast.Attribute) and function.attr in DROPPED_CALLS:
        yield function.value, f"no .{function.attr}()"
    if any(keyword.arg in ("min", "max") for keyword in keywords):
        swapped = [ast.keyword(NAMES.get(keyword.arg or "", keyword.arg), keyword.value) for keyword in keywords]
        yield ast.Call(function, node.args, swapped), "min= <-> max="


# --- running ----------------------------------------------------------------------------------------------------------


class Changed(MetaPathFinder):
    """Imports one module from code that is given."""

    def __init__(self, path: Path, code: CodeType) -> None:
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.path = path
        self.code = code

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        loader = SourceFileLoader(name, str(self.path))
        loader.get_code = lambda fullname: self.code  # type: ignore[method-assign]
        return spec_from_file_location(name, self.path, loader=loader)


@dataclass
class Run:
    """A forked process that runs the tests of a room."""

    pid: int
    mutant: Mutant | None
    ends: float


def start(tests: Sequence[str], mutant: Mutant | None, tree: ast.Module, cpu_seconds: int, log: Path) -> Run:
    """Fork, apply the mutant there, run the tests. None: the code as it is."""
    pid = os.fork()
    if pid:
        # Wall-clock time only catches processes that wait for something; the machine may be busy.
        return Run(pid, mutant, time.monotonic() + 60 + 20 * cpu_seconds)
    code = 3
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if mutant is not None:
            mutant.apply()
            changed = compile(ast.fix_missing_locations(tree), str(mutant.path), "exec", dont_inherit=True)
            sys.meta_path.insert(0, Changed(mutant.path, changed))
        import pytest

        code = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--assert=plain", *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(int(code))


def ended(run: Run) -> int | None:
    """Exit status of a run, negative for a signal; None while it works. Kills it when its time is over."""
    pid, status = os.waitpid(run.pid, os.WNOHANG)
    if pid:
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() > run.ends:
        os.killpg(run.pid, signal.SIGKILL)
        os.waitpid(run.pid, 0)
        return -signal.SIGKILL
    return None


def baseline(tests: Sequence[str], log: Path) -> int:
    """CPU seconds a mutant may take: five times those of the code as it is, which must pass."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = start(tests, None, ast.Module([], []), 600, log)
    while (status := ended(run)) is None:
        time.sleep(0.05)
    if status:
        raise SystemExit(f"the unchanged code fails ({status}):\n{log.read_text()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 5 + int(5 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def survivors(
    tests: Sequence[str], mutants: Sequence[tuple[Mutant, ast.Module]], jobs: int, folder: Path
) -> list[Mutant]:
    """The mutants that pass all tests; each is printed when it is found."""
    limit = baseline(tests, folder / "baseline.log")
    print(f"  {len(mutants)} mutants, {limit} CPU seconds each at most", flush=True)
    waiting, running, alive = list(reversed(mutants)), list[Run](), list[Mutant]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant, tree = waiting.pop()
            if len(waiting) % 50 == 0:
                print(f"  {len(waiting)} left", flush=True)
            running.append(start(tests, mutant, tree, limit, folder / f"{len(waiting)}.log"))
        for run in list(running):
            if (status := ended(run)) is None:
                continue
            running.remove(run)
            if status == 0 and run.mutant is not None:
                alive.append(run.mutant)
                print(f"  survives: {run.mutant}", flush=True)
        time.sleep(0.02)
    return alive


def is_at(mutant: Mutant, places: Sequence[str] | None) -> bool:
    """True if a mutant is in one of these files or lines. None: everywhere."""
    here = f"/{mutant.path.name}:{mutant.line}:"
    return places is None or any(f"/{place}:" in here for place in places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; all if none is given")
    parser.add_argument("--at", action="append", metavar="FILE[:LINE]", help="only mutants of this place, repeatable")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1)
    parser.add_argument("--sample", type=int, help="run N mutants of each room, drawn with a fixed seed")
    parser.add_argument("--list", action="store_true", help="print the mutants, run none")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.nice(10)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for module in () if options.list else PRELOADED:
        importlib.import_module(module)
    early = [name for name in sys.modules if any(name.startswith(f"simplerl.{room}.") for room in ROOMS)]
    assert not early, f"{early} are loaded before any mutant"
    gc.freeze()  # pytest collects garbage twice; all of torch and transformers would be half of a mutant's time
    with tempfile.TemporaryDirectory() as folder:
        # Hypothesis would replay examples that failed for one mutant with every later one.
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
        for room in options.rooms or ROOMS:
            print(room, flush=True)
            found: list[tuple[Mutant, ast.Module]] = []
            for path in sorted((ROOT / "simplerl" / room).glob("*.py")):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found += [(mutant, tree) for mutant in mutants_of(path, tree) if is_at(mutant, options.at)]
            if options.sample is not None:
                found = random.Random(0).sample(found, min(options.sample, len(found)))
            if options.list:
                print("\n".join(f"  {mutant}" for mutant, _ in found))
                continue
            alive = Counter(mutant.path.name for mutant in survivors(ROOMS[room], found, options.jobs, Path(folder)))
            for name, count in sorted(Counter(mutant.path.name for mutant, _ in found).items()):
                print(f"  {room}/{name}: {count} mutants, {alive[name]} survive", flush=True)


if __name__ == "__main__":
    main()
