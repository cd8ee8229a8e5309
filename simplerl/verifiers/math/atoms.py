r"""What an expression is made of: numbers, names, brackets, functions, commands, matrices."""

from __future__ import annotations

import re
from fractions import Fraction

from simplerl.verifiers.math import vocabulary as words
from simplerl.verifiers.math.reader import Beyond, Reader, Unreadable
from simplerl.verifiers.math.tokens import Token
from simplerl.verifiers.math.tree import Apply, Collection, Node, Number, Symbol, Words

MAX_DEPTH = 40
MAX_DIGITS = 400
DOTS = {"\\ldots", "\\dots", "\\cdots", "\\dotsc", "\\dotsb", "\\vdots", "..."}
DELIMITED = {
    "\\lfloor": ("\\rfloor", "floor"),
    "\\lceil": ("\\rceil", "ceil"),
    "\\lvert": ("\\rvert", "abs"),
    "|": ("|", "abs"),
    "\\|": ("\\|", "abs"),
    "\\Vert": ("\\Vert", "abs"),
}
# They change the meaning of their argument; over points, \\overline{AB}, they do not.
ACCENTS = {"\\bar": "bar", "\\overline": "bar", "\\hat": "hat", "\\widehat": "hat", "\\tilde": "tilde"}
_PLAIN_INSIDE = re.compile(r"\(?[A-Za-z]\)?|[-+]?[\d.,/ ]*\d[\d.,/ %]*")


class Atoms(Reader):
    """The innermost part of the grammar."""

    # --- atoms ----------------------------------------------------------------------------------------------------

    def braced(self) -> Node:
        """A group in braces: one value, or a list."""
        self.expect("{")
        node = self.listing()
        if self.accept("\\choose"):
            node = Apply("binom", (node, self.sum()))
        self.expect("}")
        return node

    def argument(self) -> Node:
        """What a command applies to: a group, or a single digit, letter or command."""
        if self.next.text == "{":
            return self.braced()
        token = self.next
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.at] = Token("number", token.text[1:], token.start + 1)
            return Number(Fraction(int(token.text[0])))
        if token.kind == "word" and len(token.text) > 1:
            self.tokens[self.at] = Token("word", token.text[1:], token.start + 1)
            return Symbol(token.text[0])
        return self.atom()

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        try:
            token = self.take()
            if token.kind == "number":
                return self.number(token.text)
            if token.kind == "word":
                return self.word(token.text)
            if token.kind == "command":
                return self.command(token.text)
            return self.bracketed(token.text)
        finally:
            self.depth -= 1

    def number(self, text: str) -> Node:
        if len(text) > MAX_DIGITS:
            raise Unreadable(f"a number of {len(text)} digits")
        if self.next.text == "." and self.tokens[self.at + 1].text == "\\overline":
            self.take()
            text += "."
        if "." in text and self.next.text == "\\overline":
            self.take()
            return repeating(text, self.group_text())
        mantissa, _, exponent = text.lower().partition("e")
        if exponent and abs(int(exponent)) > MAX_DIGITS:
            raise Unreadable(f"a number of 10^{exponent}")
        return Number(Fraction(text), "." in mantissa or exponent.startswith("-"))

    def bracketed(self, opening: str) -> Node:
        if opening in DELIMITED:
            return self.delimited(opening)
        if opening in ("(", "["):
            bars, self.bars = self.bars, 0
            inside = self.listing()
            self.bars = bars
            closing = self.expect(")", "]")
            if isinstance(inside, Collection) and inside.kind == "list":
                return Collection("tuple", inside.items, opening + closing)
            if opening + closing in ("()", "[]"):
                return inside
        if opening == "{":
            self.at -= 1
            return self.braced()
        if opening == "\\{":
            return self.set_of("\\}")
        if opening in DOTS:
            return Symbol("...")
        raise Unreadable(f"{opening!r} begins nothing")

    def delimited(self, opening: str) -> Node:
        closing, op = DELIMITED[opening]
        self.bars += 1
        inside = self.sum()
        self.expect(closing)
        self.bars -= 1
        return Apply(op, (inside,))

    def set_of(self, closing: str) -> Node:
        """`{1, 2}`, or the condition of `{x | x > 2}`."""
        if self.accept(closing):
            return Collection("set", ())
        self.bars += 1
        self.conditions += 1
        inside = self.listing()
        self.conditions -= 1
        self.bars -= 1
        if self.accept("|", "\\mid", ":", "\\vert"):
            inside = self.listing()
            self.expect(closing)
            return inside
        self.expect(closing)
        bare = isinstance(inside, Collection) and inside.kind == "list"
        return Collection("set", inside.items if isinstance(inside, Collection) and bare else (inside,))

    # --- words and commands ---------------------------------------------------------------------------------------

    def word(self, text: str) -> Node:
        name = words.SYNONYMS.get(text, text)
        if name in words.FUNCTIONS:
            return self.function(name)
        if name in words.CONSTANTS:
            return Symbol(words.CONSTANTS[name])
        if name in words.GREEK:
            return Symbol(name)
        if len(text) == 1:
            return self.letter(text)
        for prefix in ("sqrt", "sin", "cos", "tan", "log", "ln", "pi"):
            if text.startswith(prefix) and len(text) <= len(prefix) + 2:
                return self.split_word(text, len(prefix))
        if len(text) > 3 and not text.isupper():
            raise Unreadable(f"the word {text!r}")
        return self.split_word(text, 1)

    def split_word(self, text: str, length: int) -> Node:
        """Letters side by side are a product: the first is read now, the others stay."""
        start = self.tokens[self.at - 1].start
        self.tokens.insert(self.at, Token("word", text[length:], start + length))
        head = self.word(text[:length])
        return head

    def letter(self, name: str) -> Node:
        if name in "fghFG" and self.next.text == "(" and not self.next.spaced:
            return Apply(f"fn:{name}", self.arguments())
        if self.next.text == "(" and not self.next.spaced and self.is_value():
            return Apply(f"fn:{name}", self.arguments())
        if name == "C" and self.next.text == "(":
            found = self.arguments()
            return Apply("binom", found) if len(found) == 2 else Apply("mul", (Symbol("C"), *found))
        return Symbol(name)

    def is_value(self) -> bool:
        """Whether a single number in brackets comes next: `I(0)` is the value of a function."""
        following = [token.kind for token in self.tokens[self.at + 1 : self.at + 3]]
        return following == ["number", "sign"] and self.tokens[self.at + 2].text == ")"

    def arguments(self) -> tuple[Node, ...]:
        """The values in the brackets that follow."""
        inside = self.atom()
        if isinstance(inside, Collection) and inside.kind in ("tuple", "list"):
            return inside.items
        return (inside,)

    def function(self, name: str) -> Node:
        if name == "sqrt":
            return self.root()
        base = power = None
        while self.next.text in ("^", "_"):
            if self.take().text == "_":
                base = self.argument()
            else:
                power = self.braced() if self.next.text == "{" else self.signed_power()
        if power == Apply("neg", (Number(Fraction(1)),)) and name in words.TRIGONOMETRIC:
            name, power = "arc" + name, None
        args = self.function_arguments()
        node = Apply(name, args if base is None else (*args, base))
        return node if power is None else Apply("pow", (node, power))

    def function_arguments(self) -> tuple[Node, ...]:
        """Bracketed values, or the product that follows: `\\sin 2x`, but not beyond the next function."""
        if self.next.text in ("(", "{"):
            return self.arguments()
        node = self.power()
        while self.starts_factor() and not self.is_function(self.next) and not self.starts_unit(node):
            node = self.juxtaposed(node)
        return (node,)

    @staticmethod
    def is_function(token: Token) -> bool:
        return token.text.lstrip("\\") in words.FUNCTIONS or token.text in words.TEXTS

    def root(self) -> Node:
        degree = None
        if self.next.text == "[":
            self.take()
            degree = self.sum()
            self.expect("]")
        inside = self.atom()
        return Apply("sqrt", (inside,) if degree is None else (inside, degree))

    def command(self, name: str) -> Node:
        plain = name.lstrip("\\").rstrip("*")
        if name in words.FRACTIONS:
            return Apply("div", (self.argument(), self.argument()))
        if name in words.BINOMIALS:
            return Apply("binom", (self.argument(), self.argument()))
        if name in words.TEXTS or name in words.WRAPPERS:
            return self.wrapped(name)
        if name == "\\begin":
            return self.matrix()
        if name in words.BEYOND:
            raise Beyond(name)
        if name in DELIMITED:
            return self.delimited(name)
        if name == "\\lbrace":
            return self.set_of("\\rbrace")
        if name == "\\langle":
            inside = self.listing()
            self.expect("\\rangle")
            return Collection("tuple", inside.items if isinstance(inside, Collection) else (inside,), "()")
        if name in DOTS:
            return Symbol("...")
        if name == "\\mathbb":
            return self.number_set(self.group_text().strip())
        if name in ("\\emptyset", "\\varnothing"):
            return Collection("set", ())
        if name == "\\angle":
            return self.power()
        if name in ("\\circ", "\\degree"):
            raise Unreadable("a degree sign on nothing")
        if plain in words.FUNCTIONS or plain in words.CONSTANTS or plain in words.GREEK:
            return self.word(plain)
        raise Unreadable(f"the command {name}")

    @staticmethod
    def number_set(letter: str) -> Node:
        if letter == "R":
            infinity = Symbol("oo")
            return Collection("tuple", (Apply("neg", (infinity,)), infinity), "()")
        return Symbol(f"set {letter}")

    def wrapped(self, name: str) -> Node:
        r"""`\text{13}` and `\mathrm{e}` are what is inside; other text is words."""
        inside = self.group_text().strip()
        if name in ("\\overset", "\\stackrel", "\\color"):
            raise Unreadable(name)
        if inside.strip("()") in words.FUNCTIONS and name not in words.TEXTS:
            return self.function(inside)
        if name in words.TEXTS and not _PLAIN_INSIDE.fullmatch(inside) and not inside[:1].isdigit():
            return Words(inside.lower())
        if not inside:
            raise Unreadable("empty text")
        if name in ACCENTS and not inside.isupper():
            return Apply(ACCENTS[name], (self.inner(inside),))
        return self.inner(inside)

    def matrix(self) -> Node:
        kind = self.group_text().strip()
        if kind not in words.MATRICES:
            raise Beyond(kind)
        if kind == "array":
            self.group_text()
        rows: list[list[Node]] = [[]]
        while not self.accept("\\end"):
            if self.accept("\\\\"):
                rows.append([])
            elif not self.accept("&", "\\hline"):
                rows[-1].append(self.relation())
        self.group_text()
        return Collection("matrix", tuple(Collection("list", tuple(row)) for row in rows if row))


def repeating(text: str, period: str) -> Node:
    r"""`0.1\overline{6}` is exactly 1/6."""
    if not period.isdigit():
        raise Unreadable("a bar over something other than digits")
    places = len(text.partition(".")[2])
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return Number(Fraction(text + "0") + tail)
