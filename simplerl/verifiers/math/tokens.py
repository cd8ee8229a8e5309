"""From the surface of an answer to tokens: numbers in all their notations, names, commands, signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Commas = Literal["thousands", "list", "decimal"]
"""How `1,234` reads: as 1234, as the two numbers 1 and 234, or (where it can be neither) as 1.234."""

_GAP = r"(?:,\\! ?|,\\ |\{,\}|\\[,!] ?|,| |\\ |~)"
_THOUSANDS = rf"[1-9]\d{{0,2}}(?:{_GAP}\d{{3}})+(?![\d])(?:\.\d+)?"
_BRACED = r"[1-9]\d{0,2}(?:(?:\{,\}|,\\!|\\[,!]|,(?=0\d\d)| |\\ |~)\d{3})+(?!\d)(?:\.\d+)?"
_DECIMAL_COMMA = r"(?:0,\d\d+|[1-9]\d*,\d\d|[1-9]\d{3,},\d+)(?!\d)(?!,)"
_PLAIN = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?"
_REST = r"""
    (?P<space>(?:\s|~|\\[,;:!\s]|\\q?quad(?![a-zA-Z])|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|
        hfill|rm|bf|it|tt|mathstrut|strut|hspace\{[^{}]*\}|vspace\{[^{}]*\})(?![a-zA-Z])\.?)+)
  | (?P<command>\\[a-zA-Z]+(?:\*(?=\{))?)
  | (?P<escaped>\\[^a-zA-Z])
  | (?P<word>[A-Za-z]+)
  | (?P<sign><=|>=|!=|==|\*\*|->|\.\.\.|:=|[^\s])
"""
_NUMBERS: dict[Commas, str] = {
    "thousands": f"{_THOUSANDS}|{_PLAIN}".replace(" ", "[ ]"),
    "list": f"{_BRACED}|{_PLAIN}".replace(" ", "[ ]"),
    "decimal": f"{_DECIMAL_COMMA}|{_PLAIN}",
}
_WITH = {
    commas: re.compile(f"(?P<number>{numbers})|{_REST.strip()}", re.VERBOSE) for commas, numbers in _NUMBERS.items()
}
_GAPS = re.compile(r"[^\d.eE+-]")


@dataclass(frozen=True, slots=True)
class Token:
    """`kind`: number, command, escaped, word, sign or end. `spaced` when blanks stand before it."""

    kind: str
    text: str
    start: int
    spaced: bool = False


def tokenize(text: str, commas: Commas) -> list[Token]:
    """The tokens, with an `end` behind them."""
    tokens: list[Token] = []
    spaced = False
    for match in _WITH[commas].finditer(text):
        kind = match.lastgroup or "sign"
        if kind == "space":
            spaced = True
            continue
        value = match[0]
        if kind == "number":
            value = value.replace(",", ".") if commas == "decimal" else _GAPS.sub("", value)
        tokens.append(Token(kind, value, match.start(), spaced))
        spaced = False
    tokens.append(Token("end", "", len(text), spaced))
    return tokens
