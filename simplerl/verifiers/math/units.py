"""Quantities: a number with a unit. A unit that one side leaves out does not matter; two that differ do."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from simplerl.verifiers.math.tree import Apply, Node, Number, Quantity
from simplerl.verifiers.math.vocabulary import COMPOUND, UNITS

_POWER = re.compile(r"\^?\{?([23])\}?")
_WORD = re.compile(r"[a-z]+")


def known(unit: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit such as `cm`, `cm ^2`, `square feet`; None where it is not a known one."""
    above, divided, below = re.sub(r"\bper\b", "/", unit).partition("/")
    if divided:
        return _quotient(known(above), known(below))
    if unit.strip() in COMPOUND:
        return _quotient(*map(known, COMPOUND[unit.strip()]))
    names = _WORD.findall(unit)
    power = _POWER.search(unit)
    exponent = int(power[1]) if power else 1
    if names and names[0] in ("square", "sq", "cubic", "cu"):
        exponent = 2 if names.pop(0).startswith("sq") else 3
    if names and names[-1] in ("squared", "cubed"):
        exponent = 2 if names.pop() == "squared" else 3
    if len(names) != 1 or names[0] not in UNITS:
        return None
    dimension, size = UNITS[names[0]]
    return f"{dimension}{exponent}", size**exponent


def _quotient(a: tuple[str, Fraction] | None, b: tuple[str, Fraction] | None) -> tuple[str, Fraction] | None:
    return None if a is None or b is None else (f"{a[0]}/{b[0]}", a[1] / b[1])


def same_quantity(a: Node, b: Node, same: Callable[[Node, Node], bool | None]) -> bool | None:
    """Numbers with known units of one dimension are compared as lengths, times, ...; otherwise the numbers are."""
    (x, x_unit), (y, y_unit) = split(a), split(b)
    p, q = known(x_unit), known(y_unit)
    if (p and _is_percent(y)) or (q and _is_percent(x)):
        return False
    if p is None or q is None or p == q:
        return same(x, y)
    if p[0] != q[0]:
        return False
    return same(Apply("mul", (x, Number(p[1]))), Apply("mul", (y, Number(q[1]))))


def _is_percent(node: Node) -> bool:
    return isinstance(node, Apply) and node.op == "percent"


def has_unit(node: Node) -> bool:
    return isinstance(node, Quantity) or (isinstance(node, Apply) and node.op == "degree")


def split(node: Node) -> tuple[Node, str]:
    match node:
        case Quantity(Apply("degree", (value,)), unit) | Quantity(value, unit):
            return value, unit
        case Apply("degree", (value,)):
            return value, "degrees"
    return node, ""
