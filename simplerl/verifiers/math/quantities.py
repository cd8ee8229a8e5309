"""Numbers with units behind them, as they are written."""

from __future__ import annotations

import re
from fractions import Fraction

from simplerl.verifiers.math import vocabulary as words
from simplerl.verifiers.math.atoms import Atoms
from simplerl.verifiers.math.reader import SEPARATORS, Unreadable
from simplerl.verifiers.math.tokens import Token
from simplerl.verifiers.math.tree import Apply, Node, Number, Quantity, Symbol, walk

# a digit that is not an exponent of a unit
_NUMBER = re.compile(r"^\^|(?<![a-z^{-])\d|^-?\d")
_UNIT_NAME = re.compile(r"[A-Za-z]+(?:[ ~/]+[A-Za-z]+)*")
_WORD = re.compile(r"[a-z]+")
MATHEMATICS = words.FUNCTIONS | words.GREEK | words.CONSTANTS.keys() | words.SYNONYMS.keys()
MATHEMATICS -= {"square", "triangle"}


class Quantities(Atoms):
    """The part of the grammar that knows units."""

    def starts_unit(self, node: Node) -> bool:
        """Whether a unit, or other words, stand behind a value."""
        token = self.next
        if token.kind == "command":
            return self.unit_command(token, node)
        if token.kind != "word" or token.text in SEPARATORS:
            return False
        if isinstance(node, Apply) and node.op == "degree" and token.text in ("C", "F", "K"):
            return True
        constant = not any(isinstance(each, Symbol) and each.name not in ("pi", "e") for each in walk(node))
        lower = token.text.lower()
        if lower in words.BARE_UNITS or lower in words.SCALES or lower in words.PERCENT:
            return True
        if constant and len(lower) <= 2 and token.text in words.UNITS:
            return self.divides_units()
        return constant and (len(lower) > 3 or lower in words.NO_UNITS) and token.text not in MATHEMATICS

    def unit_command(self, token: Token, node: Node) -> bool:
        if token.text in words.TEXTS:
            return not self.joiner()
        if token.text != "\\mathrm":
            return False
        here, self.at = self.at, self.at + 1
        inside = unit_name(self.group_text())
        self.at = here
        named = _UNIT_NAME.fullmatch(inside) is not None and inside not in MATHEMATICS | {"e", "i", "d"}
        return inside in words.UNITS or (named and not any(isinstance(each, Symbol) for each in walk(node)))

    def divides_units(self) -> bool:
        """A single letter is a variable, but in `m/s` it is a unit."""
        sign, below = self.tokens[self.at + 1 : self.at + 3] if self.at + 2 < len(self.tokens) else (self.next,) * 2
        return sign.text == "/" and (below.text in words.UNITS or below.text in (*words.TEXTS, "\\mathrm"))

    def with_unit(self, node: Node) -> Node:
        """The value with the words behind it; `percent` and `million` are part of the value."""
        pieces: list[str] = []
        while self.starts_unit(node) or (pieces and self.next.kind == "word" and self.next.text not in SEPARATORS):
            name = self.unit_text()
            first, _, rest = name.partition(" ")
            if _NUMBER.search(name) or self.changes_value(name):
                raise Unreadable(f"{name!r} behind a number")
            if not pieces and first in words.SCALES:
                node = Apply("mul", (node, Number(Fraction(words.SCALES[first]))))
                pieces.extend([rest] if rest else [])
            elif not pieces and name in words.PERCENT:
                node = Apply("percent", (node,))
            else:
                pieces.append(name)
            while pieces and self.next.text in ("^", "/", ".", "\\cdot"):
                pieces.append(self.unit_sign())
        return Quantity(node, " ".join(" ".join(pieces).split())) if pieces else node

    @staticmethod
    def changes_value(name: str) -> bool:
        """Whether words say more than what is counted: `squared`, `or more`, `pi`."""
        said = _WORD.findall(name)
        first = said[0] if said else ""
        letter = len(first) == 1 and first not in words.UNITS and first not in ("c", "f")
        return "!" in name or letter or first in MATHEMATICS or not words.NO_UNITS.isdisjoint(said)

    def unit_text(self) -> str:
        token = self.take()
        return unit_name(self.group_text() if token.kind == "command" else token.text).lower()

    def unit_sign(self) -> str:
        """`/s`, `^2`, or a dot with nothing behind it that matters."""
        sign = self.take().text
        if sign == "." or self.next.kind == "end":
            return sign
        if self.next.text in words.TEXTS or self.next.text == "\\mathrm":
            self.take()
        if self.next.text in "-+":
            self.take()
        return sign + unit_name(self.group_text())


def unit_name(text: str) -> str:
    return text.strip("~\\,;:! \n")
