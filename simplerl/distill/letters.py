"""Which letters a text is written in, so that one that changes language is noticed."""

from __future__ import annotations

import unicodedata
from collections import Counter

LETTERS = ("Lu", "Ll", "Lt", "Lo")
"""Unicode's categories of letters. Modifier letters (Lm) are marks that go with one."""

SYMBOLS = ((0x2100, 0x214F), (0x1D400, 0x1D7FF))
"""Letters that are mathematical symbols, such as the double-struck R of the real numbers, or aleph."""


def other_letters(text: str) -> float:
    """The share, 0 to 1, of letters that are neither Latin nor Greek; 0 where there is no letter."""
    counts = {letter: n for letter, n in Counter(text).items() if is_letter(letter)}
    others = sum(n for letter, n in counts.items() if not is_latin_or_greek(letter))
    return others / sum(counts.values()) if counts else 0.0


def is_letter(character: str) -> bool:
    code = ord(character)
    return unicodedata.category(character) in LETTERS and not any(first <= code <= last for first, last in SYMBOLS)


def is_latin_or_greek(letter: str) -> bool:
    # The micro sign, the ordinal indicators, ligatures and letters of full width are letters under another name.
    plain = unicodedata.normalize("NFKC", letter)[0]
    return unicodedata.name(plain, "").startswith(("LATIN ", "GREEK "))
