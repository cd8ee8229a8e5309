"""Rational values, exactly and with a bound on their size."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from simplerl.verifiers.math.tree import Apply, Node, Number

MAX_BITS = 1 << 15
MAX_FACTORIAL = 1000


class Undefined(ArithmeticError):
    """No value: a division by zero, an infinity, a collection where a number should be."""


class OutOfRange(ArithmeticError):
    """A value too large or too small to be held; no ordinary number equals it."""


def exact(node: Node) -> Fraction | None:
    """The rational value; None where it is not rational, or not obviously so."""
    match node:
        case Number(value):
            return value
        case Apply(op, args) if op in OPERATIONS:
            values = [exact(arg) for arg in args]
            return None if None in values else OPERATIONS[op](*values)
    return None


def bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def bounded(value: Fraction) -> Fraction:
    if bits(value) > MAX_BITS:
        raise OutOfRange(f"{bits(value)} bits")
    return value


def _div(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise Undefined("division by zero")
    return bounded(a / b)


def _pow(a: Fraction, b: Fraction) -> Fraction | None:
    if b.denominator != 1:
        root = _root(a, Fraction(b.denominator))
        return None if root is None or a < 0 else _pow(root, Fraction(b.numerator))
    if a == 0 and b <= 0:
        raise Undefined("zero to a power that is not positive")
    if abs(a) == 1 or b == 0 or a == 0:
        return a ** int(b % 2) if abs(a) == 1 else Fraction(int(b == 0))
    if abs(b) * bits(a) > MAX_BITS:
        raise OutOfRange(f"a power of {bits(a)} bits times {b}")
    return a ** int(b)


def _root(a: Fraction, degree: Fraction = Fraction(2)) -> Fraction | None:
    """The real root where it is rational."""
    n = int(degree)
    if degree != n or not 1 <= n <= 64 or (a < 0 and n % 2 == 0):
        return None
    above, below = _integer_root(abs(a.numerator), n), _integer_root(a.denominator, n)
    if above is None or below is None:
        return None
    return Fraction(above if a >= 0 else -above, below)


def _integer_root(value: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    if value.bit_length() > 1000:
        return None
    guess = round(value ** (1 / n))
    return next((each for each in (guess - 1, guess, guess + 1) if each >= 0 and each**n == value), None)


def _factorial(a: Fraction) -> Fraction | None:
    if a.denominator != 1 or a < 0:
        return None
    if a > MAX_FACTORIAL:
        raise OutOfRange(f"{a}!")
    return Fraction(math.factorial(int(a)))


def _binom(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or n < 0:
        return None
    if n > MAX_BITS or min(k, n - k) > MAX_FACTORIAL:
        raise OutOfRange(f"binomial of {n} over {k}")
    return Fraction(math.comb(int(n), int(k))) if k >= 0 else Fraction(0)


def _whole(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def of(*values: Fraction) -> Fraction | None:
        return Fraction(function(*map(int, values))) if all(v.denominator == 1 for v in values) else None

    return of


OPERATIONS: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda a, b: bounded(a + b),
    "mixed": lambda a, b: a + b,
    "neg": lambda a: -a,
    "mul": lambda a, b: bounded(a * b),
    "div": _div,
    "pow": _pow,
    "sqrt": _root,
    "factorial": _factorial,
    "binom": _binom,
    "percent": lambda a: a / 100,
    "degree": lambda a: a,
    "abs": lambda a: abs(a),
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "max": lambda *v: max(v),
    "min": lambda *v: min(v),
    "gcd": _whole(math.gcd),
    "lcm": _whole(math.lcm),
}
