"""Whether a response ends in a loop."""

from __future__ import annotations

from collections.abc import Iterator

COPIES = 3
SHORTEST = 100
"""Characters a loop covers at least, so that a row of dashes or zeros is none."""

_KEY = 32


def ends_in_loop(text: str) -> bool:
    """Whether the last max(100, 3 L) characters have a period of L characters, for some L.

    The last copy may be cut, as it is where the token limit stopped the loop. White space at the end does not count.
    """
    text = text.rstrip()
    return len(text) >= SHORTEST and any(_has_period(text, period) for period in _periods(text))


def _periods(text: str) -> Iterator[int]:
    """Distances at which the last characters occur before; every period of the end is one of them."""
    key, start = text[-_KEY:], len(text) - _KEY
    found = text.rfind(key, 0, len(text) - 1)
    while found >= 0 and COPIES * (start - found) <= len(text):
        yield start - found
        found = text.rfind(key, 0, found + _KEY - 1)


def _has_period(text: str, period: int) -> bool:
    length = max(SHORTEST, COPIES * period)
    return length <= len(text) and text.endswith(text[len(text) - length : len(text) - period])
