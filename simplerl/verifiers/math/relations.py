"""Equations and inequalities: what they say of a value, the interval they describe, when two are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

from simplerl.verifiers.math.exact import OutOfRange, Undefined, exact
from simplerl.verifiers.math.numeric import evaluate, variables
from simplerl.verifiers.math.scalars import ratio, same_value
from simplerl.verifiers.math.tree import Apply, Collection, Node, Number, Relation, Symbol, Words, walk
from simplerl.verifiers.math.vocabulary import CONSTANTS, FUNCTIONS, GREEK, SYNONYMS

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
SYMMETRIC = {"=", "!=", "~", "==", "~=", "||", "_|_", "~~"}
INFINITY = Symbol("oo")
REALS = Collection("tuple", (Apply("neg", (INFINITY,)), INFINITY), "()")
_ARITHMETIC = {"add", "neg", "pm", "percent"}


def is_name(word: str) -> bool:
    """A word that is mathematics."""
    return word in CONSTANTS or word in FUNCTIONS or word in GREEK or word in SYNONYMS


def solutions(items: Sequence[Node]) -> Collection | None:
    """`x=1, y=2, x=3, y=4` as the points (1, 2) and (3, 4); None where no name comes again."""
    names = [item.terms[0] for item in items if isinstance(item, Relation) and item.ops == ("=",)]
    size = len(dict.fromkeys(names))
    if len(names) < len(items) or not 1 < size < len(items) or len(items) % size:
        return None
    if any(name != names[i % size] or not isinstance(name, Symbol) for i, name in enumerate(names)):
        return None
    values = [item.terms[1] for item in items if isinstance(item, Relation)]
    points = (tuple(values[i : i + size]) for i in range(0, len(values), size))
    return Collection("list", tuple(Collection("tuple", point, "()") for point in points))


def exact_part(relation: Relation) -> Relation:
    """Without the approximations at its end: `x = 1/3 ~ 0.33` says x = 1/3."""
    if "~" not in relation.ops or relation.ops[0] == "~":
        return relation
    first = relation.ops.index("~")
    return Relation(relation.ops[:first], relation.terms[: first + 1])


def label(relation: Relation) -> Node | None:
    """The name on the left of `name = value` or `name in set`; None when the left side is an expression."""
    return relation.terms[0] if _names(relation.terms[0]) else None


def _names(node: Node) -> bool:
    """A name, f(x), xy, ABC, |AB|, a ratio or a tuple of names: nothing with a number or a sum in it.

    A longer product of variables, `abc`, is an expression.
    """
    match node:
        case Words():
            return True
        case Apply("fn:f" | "fn:g" | "fn:h" | "fn:F" | "fn:G") | Apply("mul", (Symbol("P" | "E"), _)):
            return True
    found = list(walk(node))
    if any(isinstance(n, (Number, Relation, Words)) or (isinstance(n, Apply) and n.op in _ARITHMETIC) for n in found):
        return False
    symbols = [n.name for n in found if isinstance(n, Symbol)]
    variables_only = isinstance(node, Apply) and node.op == "mul" and all(name[0].islower() for name in symbols)
    if variables_only and len(symbols) > 2:
        return False
    return any(name not in ("oo", "...", "pi", "e") for name in symbols)


def labelled(relation: Relation) -> Node | None:
    """The value that a chain of equations gives to its left side."""
    if label(relation) is None or not set(relation.ops) <= {"=", "in"}:
        return None
    return relation.terms[-1]


def values(relation: Relation) -> Iterator[Node]:
    """The value of a relation: the one it gives to a name, or the common value of a true chain."""
    plain = exact_part(relation)
    if plain.ops and plain.ops[0] == "~":
        value: Node | None = plain.terms[0] if label(plain) is None else plain.terms[1]
    elif not plain.ops:
        value = plain.terms[0]
    else:
        value = labelled(plain) or _common(plain)
    if value is None:
        return
    yield value
    for op, term in zip(relation.ops, relation.terms[1:], strict=True):
        if op == "~" and _rounds(value, term):
            yield term


def _common(relation: Relation) -> Node | None:
    """The value of a chain whose terms are all equal, `10^3 = 1000`; a contradiction has none."""
    if set(relation.ops) != {"="}:
        return None
    last = relation.terms[-1]
    agreed = all(same_value(term, last) for term in relation.terms[:-1])
    return last if agreed else None


def _rounds(value: Node, rounded: Node) -> bool:
    """Whether a decimal is the value, rounded or cut at its own last place."""
    if not isinstance(rounded, Number):
        return False
    places = next((d for d in range(13) if (rounded.value * 10**d).denominator == 1), 13)
    try:
        exact_value = evaluate(value, {}).value
        off = abs(exact_value - float(rounded.value))
    except (Undefined, OutOfRange, OverflowError):
        return False
    cut = abs(exact_value) >= abs(rounded.value) and off < 10.0**-places
    return cut or off <= 0.5000001 * 10.0**-places


# --- the same relation ----------------------------------------------------------------------------------------------


def same_relation(a: Relation, b: Relation) -> bool:
    """The same statement: one side's difference is a multiple of the other's."""
    if len(a.ops) != 1 or len(b.ops) != 1:
        return _same_chain(a, b)
    op, other = a.ops[0], b.ops[0]
    stated = variables(*a.terms) and variables(*b.terms)
    if op not in ("=", "!=", *FLIPPED) or not stated or not _scalar(a) or not _scalar(b):
        return _same_chain(a, b)
    factor = ratio(_difference(a), _difference(b))
    if factor is None:
        return False
    return op == other if op in ("=", "!=") else op == (other if factor > 0 else FLIPPED.get(other))


def _same_chain(a: Relation, b: Relation) -> bool:
    flipped = Relation(tuple(FLIPPED.get(op, op) for op in reversed(b.ops)), tuple(reversed(b.terms)))
    turns = all(op in FLIPPED or op in SYMMETRIC for op in b.ops)
    return any(
        a.ops == each.ops and all(same_value(x, y) for x, y in zip(a.terms, each.terms, strict=True))
        for each in (b, *((flipped,) if turns else ()))
    )


def _scalar(relation: Relation) -> bool:
    return not any(isinstance(n, (Collection, Words, Relation)) for term in relation.terms for n in walk(term))


def _difference(relation: Relation) -> Node:
    left, right = relation.terms
    return Apply("add", (left, Apply("neg", (right,))))


def proportional(a: Sequence[Node], b: Sequence[Node]) -> bool:
    """`1:2` and `2:4`."""
    if len(a) != len(b):
        return False
    pairs = list(zip(a, b, strict=True))
    products = [(Apply("mul", (x, b[0])), Apply("mul", (y, a[0]))) for x, y in pairs]
    zero = Number(Fraction(0))
    return not any(same_value(each, zero) for each in (*a, *b)) and all(same_value(*each) for each in products)


# --- regions --------------------------------------------------------------------------------------------------------


def region(relation: Relation) -> Collection | None:
    """The interval of a variable that inequalities describe; None for anything else."""
    if relation.ops == ("in",) and isinstance(relation.terms[1], Collection):
        return relation.terms[1] if isinstance(relation.terms[0], Symbol) else None
    if relation.ops == ("!=",) and isinstance(relation.terms[0], Symbol) and not variables(relation.terms[1]):
        return without(REALS, (relation.terms[1],))
    if not relation.ops or not set(relation.ops) <= set(FLIPPED):
        return None
    if len(relation.ops) == 2:
        return _between(relation)
    if len(relation.ops) != 1:
        return None
    op, (left, right) = relation.ops[0], relation.terms
    if isinstance(right, Symbol) and right != INFINITY:
        op, left, right = FLIPPED[op], right, left
    if not isinstance(left, Symbol) or variables(right):
        return _solved(relation)
    return _half_line(op, right)


def carved(node: Node) -> Node:
    """The real line without the points of a finite set, as a union of intervals; any other node as it is."""
    match node:
        case Apply("setminus" | "add", (line, points)) if line == REALS:
            points = points.args[0] if isinstance(points, Apply) and points.op == "neg" else points
            if isinstance(points, Collection) and points.kind == "set":
                return without(REALS, ascending(points.items))
    return node


def ascending(points: Sequence[Node]) -> Sequence[Node]:
    """By value where all are rational, otherwise as they stand."""
    values = [exact(point) for point in points]
    if any(value is None for value in values):
        return points
    return [point for _, point in sorted(zip(values, points, strict=True), key=lambda pair: pair[0] or Fraction(0))]


def without(line: Collection, points: Sequence[Node]) -> Collection:
    """The real line without some points, as a union of intervals."""
    ends = [line.items[0], *points, line.items[1]]
    return Collection("union", tuple(Collection("tuple", pair, "()") for pair in pairwise(ends)))


def _half_line(op: str, end: Node) -> Collection:
    closed = op.endswith("=")
    if op.startswith("<"):
        return Collection("tuple", (Apply("neg", (INFINITY,)), end), "(]" if closed else "()")
    return Collection("tuple", (end, INFINITY), "[)" if closed else "()")


def _between(relation: Relation) -> Collection | None:
    (low, name, high), (first, second) = relation.terms, relation.ops
    if first[0] != second[0] or not isinstance(name, Symbol):
        return None
    if first[0] == ">":
        low, high, first, second = high, low, second, first
    brackets = ("[" if first.endswith("=") else "(") + ("]" if second.endswith("=") else ")")
    return Collection("tuple", (low, high), brackets)


def _solved(relation: Relation) -> Collection | None:
    """A linear inequality in one variable, solved exactly."""
    names = variables(*relation.terms)
    if len(names) != 1:
        return None
    difference, name = _difference(relation), names.pop()
    try:
        at = [exact(_with(difference, name, Number(Fraction(x)))) for x in (0, 1, 2)]
    except (Undefined, OutOfRange):
        return None
    if at[0] is None or at[1] is None or at[2] is None or at[2] - at[1] != at[1] - at[0] or at[1] == at[0]:
        return None
    slope = at[1] - at[0]
    op = relation.ops[0] if slope > 0 else FLIPPED[relation.ops[0]]
    return _half_line(op, Number(-at[0] / slope))


def _with(node: Node, name: str, value: Number) -> Node:
    match node:
        case Symbol(found) if found == name:
            return value
        case Apply(op, args):
            return Apply(op, tuple(_with(arg, name, value) for arg in args))
    return node


def regions(node: Collection) -> Collection | None:
    """A union, or inequalities joined by "or", as a union of intervals and sets; None for anything else."""
    if node.kind == "union" or node.kind == "tuple":
        return node
    if node.kind != "list" or not all(isinstance(item, Relation) for item in node.items):
        return None
    parts = [region(item) for item in node.items if isinstance(item, Relation)]
    if any(part is None for part in parts):
        return None
    return Collection("union", tuple(part for part in parts if part is not None))
