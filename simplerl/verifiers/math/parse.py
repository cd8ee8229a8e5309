r"""An answer as a tree: a small recursive-descent parser of LaTeX and plain notation, bounded in length and depth.

It knows no more than answers need. What it cannot read raises `Unreadable`; what it recognises as mathematics beyond
it (sums, integrals, limits) raises `Beyond`, and the symbolic path takes over. It evaluates nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache

from simplerl.verifiers.math import vocabulary as words
from simplerl.verifiers.math.normalise import MAX_CHARS
from simplerl.verifiers.math.quantities import Quantities
from simplerl.verifiers.math.reader import SEPARATORS, Unreadable
from simplerl.verifiers.math.tokens import Commas
from simplerl.verifiers.math.tree import Apply, Based, Collection, Node, Number, Quantity, Relation, Symbol

CLOSERS = {")", "]", "}", "\\}", "\\rbrace", "\\rangle", "\\rfloor", "\\rceil", "\\rvert", "|", "\\|"}
MAX_POSTFIXES = 8
ENDS = {"\\choose", "\\pmod", "\\mid", "\\vert", "\\end"}
SETS = {"\\cup": "union", "\\cap": "cap", "\\setminus": "setminus", "\\backslash": "setminus"}
PRODUCTS = {"*": "mul", "\\cdot": "mul", "\\times": "mul", "\\ast": "mul", "/": "div", "\\div": "div"}
SUMS = {"+": "add", "-": "sub", "\\pm": "pm", "\\mp": "pm"}
# `Area = `, `\\text{the area is } `: what the value is called, in words.
_LABEL = re.compile(
    r"^\s*(?:\\text\s*\{)?(?!sin|cos|tan|log)[A-Za-z]{4,}(?: [A-Za-z]+)*\s*\}?\s*(?:=|\\approx)\s*(?=[^=])"
)
_JOINERS = re.compile(r"[\s,;:.]*(and|or)[\s,;:]*", re.IGNORECASE)


@lru_cache(maxsize=8192)
def parse(text: str, commas: Commas = "thousands") -> Node:
    """The tree of an answer's surface text. Raises `Unreadable` or `Beyond`; nothing else."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters")
    text = _LABEL.sub("", text)
    return Parser(text, commas).answer()


class Parser(Quantities):
    """One pass over the tokens of one answer."""

    # --- lists and relations --------------------------------------------------------------------------------------

    def inner(self, text: str) -> Node:
        return Parser(text, self.commas, self.depth + 1).answer()

    def answer(self) -> Node:
        node = self.listing()
        self.accept(".")
        if self.next.kind != "end":
            raise Unreadable(f"{self.next.text!r} is left over")
        return node

    def separator(self) -> str:
        """`,` `;` `and` `or`, or nothing; a run such as ", and" is one separator."""
        found = ""
        while True:
            token = self.next
            if token.text in SEPARATORS or (token.text == "&" and found):
                found = self.take().text if found in ("", ",") else self.take() and found
            elif token.kind == "command" and token.text in words.TEXTS and self.joiner():
                found = self.joiner()
                self.take()
                self.group_text()
            else:
                return found

    def joiner(self) -> str:
        """The separator inside the `\\text{ and }` that comes next, if it is one."""
        here, self.at = self.at, self.at + 1
        match = _JOINERS.fullmatch(self.group_text())
        self.at = here
        return match[1].lower() if match else ""

    def listing(self) -> Node:
        """One value, or several with separators between them."""
        groups: list[list[Node]] = [[]]
        either, separators = False, set()
        while True:
            groups[-1].append(self.relation())
            found = self.separator()
            if not found:
                break
            separators.add(found)
            either |= found == "or"
            if self.next.kind == "end" or self.next.text in CLOSERS - {"|"}:
                break
            if found == ";":
                groups.append([])
        if len(groups) > 1 and any(len(group) > 1 for group in groups):
            return Collection("list", tuple(self._as_list(group) for group in groups))
        items = tuple(item for group in groups for item in group)
        return items[0] if len(items) == 1 else Collection("list", items, either=either)

    @staticmethod
    def _as_list(items: list[Node]) -> Node:
        return items[0] if len(items) == 1 else Collection("tuple", tuple(items), "()")

    def relation(self) -> Node:
        ops, terms = [], [self.ratio()]
        while self.next.text in words.RELATIONS:
            op = words.RELATIONS[self.take().text]
            self.accept("&")
            if self.accept("="):
                op = {"<": "<=", ">": ">="}.get(op, op)
            ops.append(op)
            terms.append(self.ratio())
        if ops and self.accept("\\pmod"):
            ops.append("mod")
            terms.append(self.argument())
        return Relation(tuple(ops), tuple(terms)) if ops else terms[0]

    def ratio(self) -> Node:
        parts = [self.sets()]
        while self.next.text == ":" and not self.conditions:
            self.take()
            parts.append(self.sets())
        return Collection("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    def sets(self) -> Node:
        node = self.sum()
        while self.next.text in SETS:
            kind, right = SETS[self.take().text], self.sum()
            if kind != "union":
                node = Apply(kind, (node, right))
            else:
                items = node.items if isinstance(node, Collection) and node.kind == "union" else (node,)
                node = Collection("union", (*items, right))
        return node

    # --- sums, products, powers -----------------------------------------------------------------------------------

    def sum(self) -> Node:
        node = self.product()
        while self.next.text in SUMS:
            op, right = SUMS[self.take().text], self.product()
            node = Apply("add", (node, Apply("neg", (right,)))) if op == "sub" else Apply(op, (node, right))
        return node

    def product(self) -> Node:
        if self.next.text in SUMS:
            op, inner = SUMS[self.take().text], self.product()
            if op == "add":
                return inner
            op = "neg" if op == "sub" else op
            if isinstance(inner, Quantity):
                return Quantity(Apply(op, (inner.value,)), inner.unit)
            return Apply(op, (inner,))
        node = self.power()
        while True:
            if self.next.text in PRODUCTS:
                op = PRODUCTS[self.take().text]
                node = Apply(op, (node, self.signed_power()))
            elif self.starts_unit(node):
                node = self.with_unit(node)
            elif self.starts_factor():
                node = self.juxtaposed(node)
            else:
                return node

    def signed_power(self) -> Node:
        if self.accept("-"):
            return Apply("neg", (self.signed_power(),))
        self.accept("+")
        return self.power()

    def starts_factor(self) -> bool:
        token = self.next
        if token.kind in ("number", "word"):
            return token.text not in SEPARATORS
        if token.text == "|":
            return self.bars == 0
        if token.kind == "command":
            known = (words.RELATIONS, SETS, PRODUCTS, SUMS, CLOSERS)
            joins = token.text in words.TEXTS and bool(self.joiner())
            return not joins and token.text not in ENDS and not any(token.text in each for each in known)
        return token.text in ("(", "[", "{", "\\{")

    def juxtaposed(self, left: Node) -> Node:
        """A product without a sign, or a mixed number: `1\\frac12`, `1 1/2`."""
        number = self.next.kind == "number"
        # Written side by side: in brackets the second one is a factor.
        mixed = self.tokens[self.at - 1].kind == "number" and (number or self.next.text in words.FRACTIONS)
        right = self.power()
        if mixed and isinstance(left, Number) and not left.decimal and left.value.denominator == 1:
            if number and isinstance(right, Number) and self.accept("/"):
                right = Apply("div", (right, self.power()))
            match right:
                case Apply("percent", (inner,)) if self._proper(inner):
                    return Apply("percent", (Apply("mixed", (left, inner)),))
            if self._proper(right):
                return Apply("mixed", (left, right))
        if number and isinstance(left, (Number, Symbol)):
            raise Unreadable("two numbers side by side")
        return Apply("mul", (left, right))

    @staticmethod
    def _proper(node: Node) -> bool:
        match node:
            case Apply("div", (Number(a, False), Number(b, False))):
                return a.denominator == b.denominator == 1 and 0 < a < b
        return False

    def power(self) -> Node:
        node = self.atom()
        for _ in range(MAX_POSTFIXES):
            token = self.next
            if token.text in ("^", "**"):
                self.take()
                node = self.raised(node)
            elif token.text == "_":
                self.take()
                node = self.subscripted(node)
            elif token.text == "!" and self.take():
                node = Apply("factorial", (node,))
            elif token.text in ("%", "\\%") and self.take():
                node = Apply("percent", (node,))
            elif token.text == "'" and isinstance(node, Symbol) and self.take():
                node = Symbol(node.name + "'")
            else:
                return node
        raise Unreadable(f"more than {MAX_POSTFIXES} signs behind a value")

    def raised(self, node: Node) -> Node:
        braced = self.next.text == "{"
        here = self.at
        inside = self.group_text().strip() if braced or self.next.kind == "command" else ""
        if inside in ("\\circ", "\\degree", "o"):
            return Apply("degree", (node,))
        if inside in ("\\prime", "'") and isinstance(node, Symbol):
            return Symbol(node.name + "'")
        if inside == "\\infty" or inside == "*":
            raise Unreadable(f"to the power of {inside}")
        self.at = here
        exponent = self.braced() if braced else self.signed_power() if self.next.text in "+-" else self.atom()
        match node:
            case Apply("choose-from", (n,)):
                return Apply("binom", (n, exponent))
        return Apply("pow", (node, exponent))

    def subscripted(self, node: Node) -> Node:
        below = self.group_text().strip() if self.next.text == "{" else self.take().text
        match node:
            case Number(value) if below.isdigit() and value.denominator == 1:
                return Based(str(value.numerator), below)
            case Symbol("C") if self.next.text == "^":
                return Apply("choose-from", (self.inner(below),))
            case Symbol(name):
                return Symbol(f"{name}_{''.join(below.split())}")
        raise Unreadable("a subscript on an expression")
