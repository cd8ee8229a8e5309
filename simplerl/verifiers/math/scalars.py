"""Whether two expressions have the same value.

The numeric rule: two rational values without a decimal point are equal when they are equal exactly. Where a decimal is
involved, they may differ by 1e-4 of the larger. Irrational values and expressions with variables are compared
within their own rounding errors. `10%` equals 0.1 and 10; a bare factor of 100 is wrong.
"""

from __future__ import annotations

from fractions import Fraction

from simplerl.verifiers.math.exact import OutOfRange, Undefined, bits, exact
from simplerl.verifiers.math.numeric import EPSILON, Approx, evaluate, integers, is_known, point, steps, variables
from simplerl.verifiers.math.tree import (
    Apply,
    Based,
    Collection,
    Node,
    Number,
    Relation,
    Symbol,
    Words,
    is_decimal,
    walk,
)

TOLERANCE = Fraction(1, 10_000)
POINTS = 8
MORE_POINTS = 32
"""Where too few of the first are in both domains."""
LONG_BITS = 50
INTEGERS = 31
ENOUGH = 2
# Bounds on rounding errors are first-order; a little more is allowed, far below any difference that is meant.
SLACK = 8.0


def same_value(answer: Node, gold: Node) -> bool | None:
    """Whether two scalars are equal; None when rounding leaves it open."""
    if answer == gold:
        return True
    if any(_is_no_number(each) for node in (answer, gold) for each in walk(node)):
        return same_shape(answer, gold)
    if isinstance(answer, Based) or isinstance(gold, Based):
        return same_based(answer, gold)
    if _percent(answer) != _percent(gold):
        return _same_percent(answer, gold)
    try:
        return _same_number(answer, gold)
    except (Undefined, OutOfRange):
        return False


def _is_no_number(node: Node) -> bool:
    if isinstance(node, Apply):
        return not is_known(node.op)
    return isinstance(node, (Words, Collection, Relation))


def same_shape(a: Node, b: Node) -> bool | None:
    """Expressions of things that are no numbers: the same operation on the same things."""
    if not (isinstance(a, Apply) and isinstance(b, Apply)) or a.op != b.op or len(a.args) != len(b.args):
        return False
    found = [same_value(x, y) for x, y in zip(a.args, b.args, strict=True)]
    return False if False in found else None if None in found else True


def same_based(a: Node, b: Node) -> bool:
    """`204_5` is the digits 204 in base 5; where the other side states no base, its digits count."""

    def digits(node: Node) -> tuple[str, str]:
        match node:
            case Based(text, base):
                return text, base
            case Number(value, False):
                return str(value), ""
        return "", "none"

    (x, p), (y, q) = digits(a), digits(b)
    return x == y and (p == q or "" in (p, q))


def _percent(node: Node) -> bool:
    return isinstance(node, Apply) and node.op == "percent"


def _same_percent(a: Node, b: Node) -> bool | None:
    """One side has a percent sign, the other has not."""
    bare = (a.args[0], b) if isinstance(a, Apply) and _percent(a) else (a, b.args[0] if isinstance(b, Apply) else b)
    if same_value(*bare):
        return True
    try:
        return _same_number(a, b)
    except (Undefined, OutOfRange):
        return False


def _same_number(answer: Node, gold: Node) -> bool | None:
    x, y = exact(answer), exact(gold)
    decimal = is_decimal(answer) or is_decimal(gold)
    if x is not None and y is not None:
        return abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) if decimal else x == y
    names = variables(answer, gold)
    if "oo" in names or "..." in names:
        return _same_unbounded(answer, gold)
    if long_literals(answer) != long_literals(gold):
        return None  # floating point cannot tell them apart
    if names:
        return same_function(answer, gold, names)
    a, b = evaluate(answer, {}), evaluate(gold, {})
    if decimal:
        return abs(a.value - b.value) <= float(TOLERANCE) * max(abs(a.value), abs(b.value))
    return agree(a, b)


def long_literals(node: Node) -> list[Fraction]:
    """Literals of more digits than floating point holds."""
    return sorted(n.value for n in walk(node) if isinstance(n, Number) and bits(n.value) > LONG_BITS)


def _same_unbounded(a: Node, b: Node) -> bool:
    """Infinities are equal by their sign alone."""

    def sign(node: Node) -> int:
        match node:
            case Symbol("oo"):
                return 1
            case Apply("neg", (Symbol("oo"),)):
                return -1
        return 0

    return sign(a) == sign(b) != 0


def agree(a: Approx, b: Approx) -> bool | None:
    """Equal within the rounding errors, different beyond them; None when the errors are too large to tell."""
    error = SLACK * (a.error + b.error) + 1e-300
    if abs(a.value - b.value) > error:
        return False
    scale = max(abs(a.value), abs(b.value))
    return True if error <= max(1e-7 * scale, 1e-10) else None


def values_at(nodes: tuple[Node, Node], names: set[str], index: int) -> tuple[Approx, Approx] | None:
    """Both values at a point where both are defined, and real unless `i` stands in one."""
    at = point(names, index) if index < MORE_POINTS else integers(names, index)
    try:
        found = evaluate(nodes[0], at), evaluate(nodes[1], at)
    except (Undefined, OutOfRange):
        return None
    imaginary = any(isinstance(s, Symbol) and s.name == "i" for node in nodes for s in walk(node))
    if not imaginary and any(abs(v.value.imag) > SLACK * v.error for v in found):
        return None
    return found


def same_function(answer: Node, gold: Node, names: set[str]) -> bool | None:
    """Whether two expressions agree at every point where both have a value."""
    agreements = 0
    for index in indices(answer, gold):
        if POINTS <= index < MORE_POINTS and agreements >= ENOUGH:
            continue
        values = values_at((answer, gold), names, index)
        result = None if values is None else agree(*values)
        if result is False:
            return False
        agreements += result is True
    return True if agreements >= ENOUGH else None


def indices(*nodes: Node) -> range:
    """Points to compare at; step functions are compared at integers too."""
    return range(MORE_POINTS + (INTEGERS if steps(*nodes) else 0))


def ratio(a: Node, b: Node) -> float | None:
    """The constant c with a = c b for all values of the variables; None where there is none, or c is 0."""
    names = variables(a, b)
    found: list[Approx] = []
    for index in range(POINTS):
        values = values_at((a, b), names, index)
        if values is None:
            continue
        x, y = values
        if abs(x.value) <= SLACK * x.error or abs(y.value) <= SLACK * y.error:
            return None
        quotient = x.value / y.value
        error = abs(quotient) * (x.error / abs(x.value) + y.error / abs(y.value))
        found.append(Approx(quotient, error + EPSILON * abs(quotient)))
        if agree(found[0], found[-1]) is False:
            return None
    if len(found) < ENOUGH or abs(found[0].value.imag) > SLACK * found[0].error:
        return None
    return found[0].value.real
