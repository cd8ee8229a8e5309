"""The scripts of a text, to notice a response that changes language."""

from __future__ import annotations

import unicodedata
from collections import Counter

LETTERS = ("Lu", "Ll", "Lt", "Lo")
"""Unicode's categories of letters. Modifier letters (Lm) are marks on another letter."""

SYMBOLS = ((0x2100, 0x214F), (0x1D400, 0x1D7FF))
"""Letters used as mathematical symbols, such as the double-struck R of the real numbers, or aleph."""


def other_letters(text: str) -> float:
    """Share of letters that are neither Latin nor Greek, from 0 to 1; 0 without any letter."""
    counts = {letter: n for letter, n in Counter(text).items() if is_letter(letter)}
    others = sum(n for letter, n in counts.items() if not is_latin_or_greek(letter))
    return others / sum(counts.values()) if counts else 0.0


def is_letter(character: str) -> bool:
    code = ord(character)
    return unicodedata.category(character) in LETTERS and not any(first <= code <= last for first, last in SYMBOLS)


def is_latin_or_greek(letter: str) -> bool:
    # micro sign, ordinal indicators, ligatures and full-width letters are letters under another name
    plain = unicodedata.normalize("NFKC", letter)[0]
    return unicodedata.name(plain, "").startswith(("LATIN ", "GREEK "))
