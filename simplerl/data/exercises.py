"""Generated maths exercises with exact answers: five levels, five families, one chain of small operations each.

An exercise is a question and the chain of operations that answers it. The chain is what the corpus of the
embedded base model is written from (`simplerl.data.corpus`); reinforcement learning sees only question and answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Literal

OpKind = Literal["+", "-", "*", "/", "mod", "gcd", "frac+", "frac-"]
Number = int | Fraction
LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier operation of the same chain."""

    index: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation; operands are integers, earlier results, or (numerator, denominator) pairs of a fraction."""

    kind: OpKind
    left: int | Ref | tuple[int, int]
    right: int | Ref | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question, the operations that answer it, and where it belongs."""

    question: str
    ops: tuple[Op, ...]
    level: int
    family: str

    @property
    def answer(self) -> str:
        return str(run_chain(self.ops)[-1])


def apply(kind: OpKind, left: object, right: object) -> Number:
    """The exact result of one operation; "/" is integer division (exact in every true chain)."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        a, b = Fraction(*left), Fraction(*right)
        return a + b if kind == "frac+" else a - b
    assert isinstance(left, int) and isinstance(right, int)
    operations: dict[str, Callable[[], int]] = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left // right,
        "mod": lambda: left % right,
        "gcd": lambda: gcd(left, right),
    }
    return operations[kind]()


def resolve(operand: object, results: Sequence[Number]) -> object:
    """An operand with a reference replaced by the result it names."""
    return results[operand.index] if isinstance(operand, Ref) else operand


def run_chain(ops: Sequence[Op]) -> list[Number]:
    """The result of every operation, in order."""
    results: list[Number] = []
    for op in ops:
        results.append(apply(op.kind, resolve(op.left, results), resolve(op.right, results)))
    return results


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the benchmarks: one in sixteen, by a hash of its words and numbers.

    Training sets and the base model's corpus use only the others, so they are disjoint by construction.
    """
    return hashlib.blake2b(" ".join(question.split()).encode(), digest_size=1).digest()[0] % 16 == 0


# --- families -------------------------------------------------------------------------------------------------------

Draw = tuple[str, tuple[Op, ...]]


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _ordered(rng: random.Random, digits: int) -> tuple[int, int]:
    """Two numbers of `digits` digits, the larger first, never equal."""
    a, b = _number(rng, digits), _number(rng, digits)
    return (max(a, b), min(a, b)) if a != b else (a + 1, b)


def _integer(rng: random.Random, level: int) -> Draw:
    if level <= 2:
        a, b = _ordered(rng, 2 if level == 1 else 3)
        sign: Literal["+", "-"] = rng.choice(("+", "-"))
        return f"Compute {a}{sign}{b}.", (Op(sign, a, b),)
    if level == 3:
        a, b, c = _number(rng, 3), _number(rng, 3), _number(rng, 3)
        sign = "-" if a + b > c and rng.random() < 0.5 else "+"
        return f"Compute {a}+{b}{sign}{c}.", (Op("+", a, b), Op(sign, Ref(0), c))
    if level == 4:
        a, b, c = rng.randrange(2, 10), _number(rng, 2), _number(rng, 2)
        sign = "-" if a * b > c and rng.random() < 0.5 else "+"
        return f"Compute {a}*{b}{sign}{c}.", (Op("*", a, b), Op(sign, Ref(0), c))
    b, c = _number(rng, 2), _number(rng, 3)
    a = b + c + rng.randrange(1, 800)
    return f"Compute {a}-({b}+{c}).", (Op("+", b, c), Op("-", a, Ref(0)))


def _equation(rng: random.Random, level: int) -> Draw:
    if level <= 3:
        large, small = _ordered(rng, 2 if level == 1 else 3)
        if level < 3 or rng.random() < 0.5:
            return f"Solve x+{small}={large} for x.", (Op("-", large, small),)
        return f"Solve x-{small}={large} for x.", (Op("+", large, small),)
    a, x = rng.randrange(2, 10), _number(rng, 2)
    if level == 4:
        b = _number(rng, 2)
        return f"Solve {a}x+{b}={a * x + b} for x.", (Op("-", a * x + b, b), Op("/", Ref(0), a))
    b = rng.randrange(1, x)
    return f"Solve {a}(x-{b})={a * (x - b)} for x.", (Op("/", a * (x - b), a), Op("+", Ref(0), b))


def _modular(rng: random.Random, level: int) -> Draw:
    m = rng.randrange(3, 10)
    if level <= 3:
        n = _number(rng, 2 if level == 1 else 3)
        return f"Find the remainder of {n} divided by {m}.", (Op("mod", n, m),)
    if level == 4:
        a, b = _number(rng, 3), _number(rng, 3)
        return f"Find the remainder of {a}+{b} divided by {m}.", (Op("+", a, b), Op("mod", Ref(0), m))
    factor = rng.randrange(2, 13)
    a, b = factor * rng.randrange(2, 99 // factor + 1), factor * rng.randrange(2, 99 // factor + 1)
    large, small = (max(a, b), min(a, b)) if a != b else (2 * a, a)
    return f"Find the greatest common divisor of {large} and {small}.", (Op("gcd", large, small),)


def _fraction(rng: random.Random, level: int) -> Draw:
    while True:
        b, d = rng.randrange(2, 10), rng.randrange(2, 10)
        a, c = rng.randrange(1, b), rng.randrange(1, d)
        kind: Literal["frac+", "frac-"] = "frac-" if level == 5 else "frac+"
        if level <= 3:
            d, c = b, rng.randrange(1, b)
        cross = a * d - c * b if kind == "frac-" else a * d + c * b
        # Only sums that need no reducing: the chain then ends where the cross product does.
        wanted = cross > 0 and (b != d if level > 3 else True)
        if wanted and (gcd(cross, b * d) == 1 if level > 3 else gcd(a + c, b) == 1):
            sign = "-" if kind == "frac-" else "+"
            return f"Compute {a}/{b}{sign}{c}/{d}.", (Op(kind, (a, b), (c, d)),)


NAMES = ("Tom", "Anna", "Ben", "Mia")
THINGS = ("apples", "coins", "books", "cards")


def _word(rng: random.Random, level: int) -> Draw:
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    if level <= 3:
        large, small = _ordered(rng, min(level, 2) + (level == 3))
        if rng.random() < 0.5:
            return f"{who} has {large} {what} and buys {small} more. How many {what} now?", (Op("+", large, small),)
        return f"{who} has {large} {what} and loses {small}. How many {what} now?", (Op("-", large, small),)
    if level == 4:
        a, b = _number(rng, 3), _number(rng, 3)
        c = rng.randrange(10, min(a + b, 1000))
        question = f"{who} has {a} {what}, buys {b} more and loses {c}. How many {what} now?"
        return question, (Op("+", a, b), Op("-", Ref(0), c))
    a, b, c = rng.randrange(2, 10), _number(rng, 2), _number(rng, 3)
    question = f"{who} has {a} boxes of {b} {what} and buys {c} more. How many {what} now?"
    return question, (Op("*", a, b), Op("+", Ref(0), c))


FAMILIES: dict[str, Callable[[random.Random, int], Draw]] = {
    "integer": _integer,
    "equation": _equation,
    "modular": _modular,
    "fraction": _fraction,
    "word": _word,
}
# Fractions have the fewest distinct questions, so they are drawn less often.
FAMILY_WEIGHTS = {"integer": 3, "equation": 2, "modular": 2, "fraction": 1, "word": 3}


def draw(rng: random.Random, level: int) -> Exercise:
    """One exercise of a level, from any family."""
    family = rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()))[0]
    question, ops = FAMILIES[family](rng, level)
    return Exercise(question, ops, level, family)


def draw_hard(rng: random.Random, level: int = 6) -> Exercise:
    """Harder than anything trained on: chains of three and four operations."""
    a, b, c, d = (_number(rng, 3) for _ in range(4))
    shapes: list[Draw] = [
        (f"Compute {a}+{b}+{c}+{d}.", (Op("+", a, b), Op("+", Ref(0), c), Op("+", Ref(1), d))),
        (f"Compute {a + b + c}-({a}+{b})+{d}.", (Op("+", a, b), Op("-", a + b + c, Ref(0)), Op("+", Ref(1), d))),
        (
            f"Find the remainder of {a}+{b}+{c} divided by {d % 7 + 3}.",
            (Op("+", a, b), Op("+", Ref(0), c), Op("mod", Ref(1), d % 7 + 3)),
        ),
        (
            f"{rng.choice(NAMES)} has {d % 8 + 2} boxes of {b % 90 + 10} cards, buys {a} more and loses 25. "
            "How many cards now?",
            (Op("*", d % 8 + 2, b % 90 + 10), Op("+", Ref(0), a), Op("-", Ref(1), 25)),
        ),
    ]
    question, ops = rng.choice(shapes)
    return Exercise(question, ops, level, "chain")


def draw_unseen(rng: random.Random, level: int = 3) -> Exercise:
    """Out of distribution: operations the base knows in wordings and forms that neither corpus nor training has."""
    large, small = _ordered(rng, 3)
    a, b, m = rng.randrange(2, 10), _number(rng, 2), rng.randrange(3, 10)
    shapes: list[Draw] = [
        (f"Add {small} and {large}.", (Op("+", small, large),)),
        (f"Compute {small}+x if x={large}.", (Op("+", small, large),)),
        (f"Solve {large}-x={small} for x.", (Op("-", large, small),)),
        (f"Solve {a}x={a * b} for x.", (Op("/", a * b, a),)),
        (f"How many more is {large} than {small}?", (Op("-", large, small),)),
        (f"{a} boxes of {b} books. How many books?", (Op("*", a, b),)),
        (f"Find {large} mod {m}.", (Op("mod", large, m),)),
    ]
    question, ops = rng.choice(shapes)
    return Exercise(question, ops, level, "unseen")


def distinct(count: int, draw_one: Callable[[], Exercise], *, held_out: bool, limit: int = 400) -> list[Exercise]:
    """`count` exercises with different questions from one side of the held-out split."""
    found: dict[str, Exercise] = {}
    for _ in range(count * limit):
        exercise = draw_one()
        if is_held_out(exercise.question) == held_out:
            found.setdefault(exercise.question, exercise)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} distinct exercises in {count * limit} draws, {count} wanted")
