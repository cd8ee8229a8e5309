"""Small tables of text: rows of cells, the first one the head. A page shows the lines of a cell below each other."""

from __future__ import annotations

from collections.abc import Sequence

Row = tuple[str, ...]
Grid = list[Row]


def table(rows: Sequence[Row], indent: str = "") -> str:
    """Rows as aligned columns; the last column is not padded."""
    rows = [tuple(map(_on_one_line, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
    return "\n".join(indent + line for line in lines)


def markdown(grid: Grid) -> str:
    """The rows as a Markdown table."""
    head, *rows = [tuple(map(markdown_cell, row)) for row in grid]
    rule = ("---",) * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def markdown_cell(text: str) -> str:
    """Text on one line that ends no cell."""
    return _on_one_line(text).replace("|", "\\|")


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ")
