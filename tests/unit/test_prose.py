"""Plain words: phrases that a hurried reader stumbles over are in no docstring, comment, message or page."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.unit

STUMBLES = re.compile(
    r"\b(?:is|are|was|were) (?:said|told|asked|handed)\b|\bstands? for\b|\bbegun anew\b|\bmade good\b"
    r"|\b(?:goes|went|going) on\b|\bhand(?:s|ed|ing)?[- ]?over\b|\bOf what\b|\bThose that\b|\bThe same,"
    r"|(?<!there )\bis no [a-z]+|\bso many\b",
    re.IGNORECASE,
)
WORDS = re.compile(r"[A-Za-z]+ [A-Za-z]+ [A-Za-z]+")
PAGES = ("README.md", "CHANGELOG.md", "docs", "examples")


def words_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages of a Python file, by line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and WORDS.search(token.string)):
            yield from enumerate(token.string.splitlines(), token.start[0])


def words_of_page(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def stumbles(files: list[Path]) -> list[str]:
    read = [(path, words_of_code(path) if path.suffix == ".py" else words_of_page(path)) for path in files]
    return [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r} in {line.strip()}"
        for path, lines in read
        for number, line in lines
        if (found := STUMBLES.search(line))
    ]


def test_the_code_is_in_plain_words() -> None:
    assert stumbles(sorted((ROOT / "simplerl").rglob("*.py"))) == []


def test_the_pages_are_in_plain_words() -> None:
    pages = [
        path for name in PAGES for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    assert stumbles(sorted(path for path in pages if path.suffix in (".md", ".yaml", ".sh"))) == []


@pytest.mark.parametrize(
    "line",
    ["The engine is handed weights.", "A run goes on.", "It is no number.", "What stands for it", "so many steps"],
)
def test_a_stumble_is_found(line: str) -> None:
    assert STUMBLES.search(line)


@pytest.mark.parametrize(
    "line", ["there is no answer", "The same command resumes.", "as many ranks as GPUs", "asked for"]
)
def test_plain_words_pass(line: str) -> None:
    assert not STUMBLES.search(line)
