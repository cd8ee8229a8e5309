"""How numbers, tables and names are printed, in commands, reports and error messages.

Numbers that are not here are printed by a format of Python's own, such as `{count:,}`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

Row = tuple[str, ...]
Grid = list[Row]

MISSING = "-"
"""A number that there is none of."""

NO_BREAK = "\N{NO-BREAK SPACE}"

# --- numbers ----------------------------------------------------------------------------------------------------------


def number(value: object, form: str, missing: str = MISSING) -> str:
    """A number by a format of Python's, such as ",.0f"; `missing` for anything else."""
    return format(value, form) if isinstance(value, int | float) else missing


def points(share: float, digits: int = 1, *, signed: bool = False) -> str:
    """A share in percent without the sign: 0.0523 as "5.2", signed "+5.2"."""
    return format(100 * share, f"{'+' if signed else ''}.{digits}f")


def percent(share: float | None, digits: int = 1, space: str = " ") -> str:
    """0.0523 as "5.2 %"."""
    return MISSING if share is None else f"{points(share, digits)}{space}%"


def bounds(low: float, high: float, *, signed: bool = False) -> str:
    """An interval of shares in percent: "[4.1, 8.2]"."""
    return f"[{points(low, signed=signed)}, {points(high, signed=signed)}]"


def with_bounds(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """A share in percent with its interval: "5.8 [4.1, 8.2]", signed "+5.8 [+4.1, +8.2]"."""
    return f"{points(value, signed=signed)} {bounds(low, high, signed=signed)}"


def p_value(p: float) -> str:
    """Three decimals, or the order of magnitude: "0.042", "3e-07"."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def significant(value: float, digits: int = 3, *, whole_from: float = 100) -> str:
    """`digits` significant digits; from `whole_from` on a whole number: "0.123", "12.3", "1,234"."""
    return f"{value:,.0f}" if abs(value) >= whole_from else f"{value:.{digits}g}"


def gib(count: float) -> str:
    """Bytes as "1.5 GiB"."""
    return f"{count / (1 << 30):.1f} GiB"


# --- times ------------------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """As a stop-watch shows it: "2:03", "1:02:03"."""
    hours, minutes, rest = _parts(seconds)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def long_clock(seconds: float) -> str:
    """With hours and days: "0:02:03", "2 days, 1:02:03"."""
    return str(timedelta(seconds=round(seconds)))


def duration(seconds: float) -> str:
    """In words, to the second: 547.3 as "9 min 7 s"."""
    parts = zip(_parts(seconds), ("h", "min", "s"), strict=True)
    return NO_BREAK.join(f"{value}{NO_BREAK}{unit}" for value, unit in parts if value) or "0 s"


def rough_duration(seconds: float) -> str:
    """In the largest unit that gives 2 or more: "119.0 s", "2.0 min", "1.5 hours" as "90.0 min"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _parts(seconds: float) -> tuple[int, int, int]:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return *divmod(minutes, 60), rest


# --- text -------------------------------------------------------------------------------------------------------------


def to_utf8(text: str) -> bytes:
    """The text as UTF-8, which cannot hold lone surrogates: a byte-level tokenizer may make them, each becomes "?"."""
    return text.encode("utf-8", "replace")


def replace_surrogates(text: str) -> str:
    """The text with "?" for each lone surrogate, see `to_utf8`."""
    return to_utf8(text).decode()


def did_you_mean(
    name: str,
    known: Iterable[str],
    *,
    most: int = 1,
    cutoff: float = 0.6,
    show: Callable[[str], str] = repr,
) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'grpo'?", or "." if nothing is like it."""
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"; did you mean {', '.join(map(show, close))}?" if close else "."


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], indent: str = "") -> str:
    """Rows as aligned columns, the first one the head; the last column is not padded."""
    rows = [tuple(map(_on_one_line, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
    return "\n".join(indent + line for line in lines)


def markdown(grid: Grid) -> str:
    """The rows as a Markdown table. A page shows the lines of a cell below each other, this table beside each other."""
    head, *rows = [tuple(map(markdown_cell, row)) for row in grid]
    rule = ("---",) * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def markdown_cell(text: str) -> str:
    """Text on one line that ends no cell."""
    return _on_one_line(text).replace("|", "\\|")


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ")
