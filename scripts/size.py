"""Lines per file and per function of the package: median, largest, and where. `python scripts/size.py`"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).resolve().parents[1] / "simplerl"


def files(package: Path = PACKAGE) -> list[tuple[int, str]]:
    """Lines and name of every file that has any, largest first."""
    sizes = (
        (len(path.read_text(encoding="utf-8").splitlines()), _name(path, package)) for path in package.rglob("*.py")
    )
    return sorted((size for size in sizes if size[0]), reverse=True)


def functions(package: Path = PACKAGE) -> list[tuple[int, str]]:
    """Lines, signature and docstring included, and name of every function and method, largest first."""
    return sorted((each for path in package.rglob("*.py") for each in _functions(path, package)), reverse=True)


def _functions(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{_name(path, package)}:{node.name}"


def _name(path: Path, package: Path) -> str:
    return str(path.relative_to(package.parent))


def main() -> None:
    for what, sizes in (("files", files()), ("functions", functions())):
        lines = [size for size, _ in sizes]
        print(f"{len(sizes)} {what}, {sum(lines):,} lines: median {median(lines):g}, largest {lines[0]}")
        print("\n".join(f"  {size:4} {name}" for size, name in sizes[:5]))


if __name__ == "__main__":
    main()
