"""Values of expressions in floating point, each with a bound on its rounding error.

Two expressions that agree within their error bounds at several points chosen by hashing are the same expression
(the idea of Schwartz's and Zippel's identity test); two that differ by more at one point are not.
"""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simplerl.verifiers.math.exact import OutOfRange, Undefined
from simplerl.verifiers.math.tree import Apply, Node, Number, Symbol, walk
from simplerl.verifiers.math.vocabulary import TRIGONOMETRIC

EPSILON = 2.0**-52
HUGE, TINY = 1e280, 1e-280
CONSTANTS: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}


@dataclass(frozen=True, slots=True)
class Approx:
    """A complex value and a bound on its absolute error."""

    value: complex
    error: float


Point = Mapping[str, complex]


def variables(*nodes: Node) -> set[str]:
    return {s.name for node in nodes for s in walk(node) if isinstance(s, Symbol) and s.name not in CONSTANTS}


def point(names: set[str], index: int) -> Point:
    """Values for variables that depend on their names alone: positive for even points, of either sign for odd ones."""
    values = {}
    for name in names:
        unit = zlib.crc32(f"{name}/{index}".encode()) / 2**32
        scale = index // 2 if index < 8 else zlib.crc32(f"{name}:{index}".encode())
        size = (0.35 + 0.6 * unit, 1.1 + 5 * unit, 20 + 40 * unit, 300 + 400 * unit)[scale % 4]
        negative = index % 2 == 1 and zlib.crc32(f"{index}:{name}".encode()) % 3 > 0
        values[name] = complex(-size if negative else size)
    return values


def steps(*nodes: Node) -> bool:
    """Whether a step function stands in it, which points between the integers may not tell from another."""
    return any(isinstance(each, Apply) and each.op in ("floor", "ceil") for node in nodes for each in walk(node))


def integers(names: set[str], index: int) -> Point:
    """Positive integers for the variables."""
    return {name: complex(1 + (index + zlib.crc32(name.encode())) % 31) for name in names}


def evaluate(node: Node, at: Point) -> Approx:
    """The value at a point. Raises `Undefined` and `OutOfRange`."""
    match node:
        case Number(value):
            try:
                return _leaf(float(value))
            except OverflowError:
                raise OutOfRange(f"{value}") from None
        case Symbol(name) if name in CONSTANTS:
            return _leaf(CONSTANTS[name])
        case Symbol(name) if name in at:
            return _leaf(at[name])
        case Apply(op, args):
            return _applied(op, args, at)
    raise Undefined(f"{type(node).__name__} is not a number")


def is_known(op: str) -> bool:
    """Whether an operation has a numeric value."""
    return op in OPERATIONS or op in ("gcd", "lcm") or op.startswith("fn:")


def _leaf(value: complex) -> Approx:
    return Approx(complex(value), abs(value) * EPSILON)


def _applied(op: str, args: tuple[Node, ...], at: Point) -> Approx:
    values = [evaluate(arg, at) for arg in args]
    if (op in TRIGONOMETRIC or op == "cis") and any(isinstance(n, Apply) and n.op == "degree" for n in walk(args[0])):
        values[0] = _mul(values[0], _leaf(math.pi / 180))
    try:
        if op.startswith("fn:"):
            return _unknown(op, values)
        result = OPERATIONS[op](*values)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise Undefined(str(error)) from None
    except OverflowError as error:
        raise OutOfRange(str(error)) from None
    except KeyError:
        raise Undefined(f"no numeric {op}") from None
    if not cmath.isfinite(result.value) or not math.isfinite(result.error):
        raise Undefined(op)
    if abs(result.value) > HUGE:
        raise OutOfRange(op)
    return result


def _add(a: Approx, b: Approx) -> Approx:
    value = a.value + b.value
    return Approx(value, a.error + b.error + EPSILON * abs(value))


def _neg(a: Approx) -> Approx:
    # Of zero no negative: on which side of a branch cut a real number lies would depend on it.
    return Approx(0 - a.value, a.error)


def _mul(a: Approx, b: Approx) -> Approx:
    value = a.value * b.value
    if abs(value) < TINY and a.value and b.value:
        raise OutOfRange("underflow")
    return Approx(value, abs(a.value) * b.error + abs(b.value) * a.error + a.error * b.error + 2 * EPSILON * abs(value))


def _div(a: Approx, b: Approx) -> Approx:
    if abs(b.value) <= b.error or b.value == 0:
        raise Undefined("division by zero")
    inverse = 1 / b.value
    return _mul(a, Approx(inverse, b.error * abs(inverse) ** 2 * 2 + EPSILON * abs(inverse)))


def _pow(a: Approx, b: Approx) -> Approx:
    if a.value == 0:
        if b.value.real <= 0:
            raise Undefined("zero to a power that is not positive")
        return Approx(0j, a.error)
    size = abs(b.value.real * math.log(abs(a.value)))
    if size > 640:
        raise OutOfRange("power")
    value = a.value**b.value
    whole = b.error <= EPSILON * abs(b.value) and b.value.imag == 0 and b.value.real == round(b.value.real)
    if whole and abs(b.value.real) <= 256:
        value = a.value ** int(b.value.real)
    relative = abs(b.value) * a.error / abs(a.value) + abs(cmath.log(a.value)) * b.error + (4 + size) * EPSILON
    return Approx(value, abs(value) * relative)


def _function(f: Callable[[complex], complex], slope: Callable[[complex], complex]) -> Callable[[Approx], Approx]:
    """A differentiable function: an error grows by the slope."""

    def applied(a: Approx) -> Approx:
        value = f(a.value)
        return Approx(value, abs(slope(a.value)) * a.error * 1.01 + 4 * EPSILON * (abs(value) + TINY))

    return applied


def _sqrt(a: Approx, degree: Approx | None = None) -> Approx:
    n = 2 if degree is None else degree.value.real
    if abs(a.value) <= a.error:
        return Approx(0j, a.error ** (1 / n))
    if a.value.imag == 0 and a.value.real < 0 and n % 2 == 1:
        return _neg(_sqrt(_neg(a), degree))
    value = cmath.sqrt(a.value) if n == 2 else a.value ** (1 / n)
    return Approx(value, abs(value) * (a.error / abs(a.value) / n + 4 * EPSILON))


def _log(a: Approx, base: Approx | None = None) -> Approx:
    natural = _function(cmath.log, lambda z: 1 / z)
    return natural(a) if base is None else _div(natural(a), natural(base))


def _real(f: Callable[..., float]) -> Callable[..., Approx]:
    """A function of real numbers."""

    def applied(*values: Approx) -> Approx:
        if any(abs(v.value.imag) > v.error for v in values):
            raise Undefined("a complex value")
        result = f(*(v.value.real for v in values))
        return Approx(complex(result), sum(v.error for v in values) + 64 * EPSILON * abs(result))

    return applied


def _abs(a: Approx) -> Approx:
    return Approx(complex(abs(a.value)), a.error + EPSILON * abs(a.value))


def _factorial(x: float) -> float:
    if abs(x) > 150:
        raise OverflowError("factorial")
    return math.gamma(x + 1)


def _binom(n: float, k: float) -> float:
    if k == round(k) and 0 <= k <= 60:
        return math.prod((n - j) / (j + 1) for j in range(int(k)))
    if min(n, k, n - k) < 0 or n > 150:
        raise OverflowError("binomial")
    return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1))


def _unknown(name: str, values: list[Approx]) -> Approx:
    """Some fixed smooth function, different for each name: f(x) is f(x) and nothing else."""
    shift = 0.3 + zlib.crc32(name.encode()) / 2**32
    total = sum((each.value * (k + shift) for k, each in enumerate(values, 1)), complex(shift))
    error = sum((k + shift) * each.error for k, each in enumerate(values, 1))
    return _function(lambda z: cmath.sin(z) + shift * z * z, lambda z: cmath.cos(z) + 2 * shift * z)(
        Approx(total, error)
    )


_sin = _function(cmath.sin, cmath.cos)
_cos = _function(cmath.cos, cmath.sin)
_tan = _function(cmath.tan, lambda z: 1 + cmath.tan(z) ** 2)
_ONE = Approx(1 + 0j, 0.0)

OPERATIONS: dict[str, Callable[..., Approx]] = {
    "add": _add,
    "mixed": _add,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "sqrt": _sqrt,
    "percent": lambda a: _mul(a, Approx(0.01 + 0j, 0.01 * EPSILON)),
    "degree": lambda a: a,
    "abs": _abs,
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "cot": lambda a: _div(_cos(a), _sin(a)),
    "sec": lambda a: _div(_ONE, _cos(a)),
    "csc": lambda a: _div(_ONE, _sin(a)),
    "cis": lambda a: _add(_cos(a), _mul(_leaf(1j), _sin(a))),
    "arcsin": _function(cmath.asin, lambda z: 1 / cmath.sqrt(1 - z * z)),
    "arccos": _function(cmath.acos, lambda z: 1 / cmath.sqrt(1 - z * z)),
    "arctan": _function(cmath.atan, lambda z: 1 / (1 + z * z)),
    "sinh": _function(cmath.sinh, cmath.cosh),
    "cosh": _function(cmath.cosh, cmath.sinh),
    "tanh": _function(cmath.tanh, lambda z: 1 - cmath.tanh(z) ** 2),
    "exp": _function(cmath.exp, cmath.exp),
    "log": _log,
    "ln": _log,
    "lg": lambda a: _log(a, _leaf(10.0)),
    "floor": _real(math.floor),
    "ceil": _real(math.ceil),
    "max": _real(max),
    "min": _real(min),
    "sgn": _real(lambda x: math.copysign(1, x) if x else 0.0),
    "factorial": _real(_factorial),
    "binom": _real(_binom),
}
