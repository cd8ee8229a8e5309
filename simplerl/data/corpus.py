"""The corpus the embedded base model is pre-trained on: like a web-scale maths corpus, it mixes styles.

Documents are questions with answers in one of three styles, and textbook pages that work single operations out
digit by digit. Nothing here is seen by reinforcement learning; it only has to find the good habit among the bad.

| style | what it is |
|---|---|
| code  | a Python program whose output is made up: right half the time |
| quick | every result written down in one go, each wrong in 15 % |
| check | quick with a slip in 30 %, then "Wait, let me check." and every operation digit by digit |

How often each occurs, and boxes its answer, is a `Mixture`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from simplerl.data.exercises import Exercise, Number, Op, Ref, draw, is_held_out, resolve, run_chain

EXAMPLE_SHARE = 0.8
CARELESS_RATE = 0.15
SLIP_RATE = 0.30
CODE_RIGHT_RATE = 0.5
LEVEL_WEIGHTS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 2}
VARIABLES = "abcdef"
CHECKS = ("Wait, let me check.", "Hmm, let me check again.")


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a corpus consists of: shares of styles among answers, how often each boxes, and the share of textbook."""

    styles: Mapping[str, float]
    boxed: Mapping[str, float]
    textbook: float
    remark: str = ""
    """What a program's output is followed by."""


MAIN = Mixture({"code": 0.52, "quick": 0.43, "check": 0.05}, {"code": 0.6, "quick": 0.8, "check": 1.0}, textbook=0.5)
# The last part of pre-training, at a small rate: it sets the habits that the model answers with.
ANNEAL = Mixture(
    {"code": 0.5, "quick": 0.482, "check": 0.018},
    {"code": 0.12, "quick": 0.95, "check": 1.0},
    textbook=0.2,
    remark="Now we can find the answer of the program.\n",
)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of the corpus. A textbook page has no question."""

    style: str
    question: str | None
    text: str


def _slip(value: Number, rng: random.Random) -> Number:
    """A plausible wrong result: a carry lost or a digit off."""
    if isinstance(value, Fraction):
        return Fraction(value.numerator + rng.choice((-1, 1, 2)), value.denominator)
    return value + rng.choice((-10, -1, 1, 10, -100 if value > 100 else 2, 100 if value > 100 else -2))


def careless_chain(ops: Sequence[Op], slip_rates: Sequence[float], rng: random.Random) -> list[Number]:
    """Results of a chain in which each one is wrong with its rate; later operations use the wrong result."""
    results: list[Number] = []
    for op, rate in zip(ops, slip_rates, strict=True):
        exact = run_chain([Op(op.kind, resolve(op.left, results), resolve(op.right, results))])[0]  # type: ignore[arg-type]
        results.append(_slip(exact, rng) if rng.random() < rate else exact)
    return results


def _operand(operand: object) -> str:
    return f"{operand[0]}/{operand[1]}" if isinstance(operand, tuple) else str(operand)


def expression(op: Op, results: Sequence[Number]) -> str:
    """An operation as it is written in a solution: "345+278", "861 mod 7", "gcd(84,36)", "3/7+4/9"."""
    left, right = _operand(resolve(op.left, results)), _operand(resolve(op.right, results))
    if op.kind == "gcd":
        return f"gcd({left},{right})"
    sign = " mod " if op.kind == "mod" else op.kind.removeprefix("frac")
    return f"{left}{sign}{right}"


# --- the careful way: digit by digit ----------------------------------------------------------------------------------


def _columns_add(a: int, b: int) -> list[str]:
    columns, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        columns.append(f"{x}+{y}" + ("+1" if carry else "") + f"={total}")
        carry = total // 10
    return columns


def _columns_subtract(a: int, b: int) -> list[str]:
    columns, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        lend = 10 if x - y - borrow < 0 else 0
        text = f"{x}-{y}" + ("-1" if borrow else "") + ("+10" if lend else "")
        columns.append(f"{text}={x - y - borrow + lend}")
        borrow = 1 if lend else 0
    return columns


def _columns_multiply(a: int, b: int) -> list[str]:
    columns, carry = [], 0
    for place in range(len(str(b))):
        digit = b // 10**place % 10
        total = a * digit + carry
        columns.append(f"{a}*{digit}" + (f"+{carry}" if carry else "") + f"={total}")
        carry = total // 10
    return columns


def _columns_divide(a: int, m: int) -> list[str]:
    columns, rest = [], 0
    for digit in str(a):
        rest = rest * 10 + int(digit)
        columns.append(f"{rest}={m}*{rest // m}+{rest % m}")
        rest %= m
    return columns


def _columns_gcd(a: int, b: int) -> list[str]:
    columns = []
    while b:
        columns.append(f"{a}={b}*{a // b}+{a % b}")
        a, b = b, a % b
    return columns


def _columns_fraction(kind: str, a: tuple[int, int], b: tuple[int, int]) -> list[str]:
    (p, q), (r, s) = a, b
    if q == s:
        return [f"{p}+{r}={p + r}"]
    sign, cross = ("-", p * s - r * q) if kind == "frac-" else ("+", p * s + r * q)
    return [f"{p}*{s}={p * s}", f"{r}*{q}={r * q}", f"{p * s}{sign}{r * q}={cross}", f"{q}*{s}={q * s}"]


def careful(op: Op, results: Sequence[Number]) -> str:
    """One operation worked out digit by digit, e.g. "345+278: 5+8=13,4+7+1=12,3+2+1=6, 623"."""
    left, right = resolve(op.left, results), resolve(op.right, results)
    if isinstance(left, tuple) and isinstance(right, tuple):
        columns = _columns_fraction(op.kind, left, right)
    else:
        assert isinstance(left, int) and isinstance(right, int)
        columns = {
            "+": _columns_add,
            "-": _columns_subtract,
            "*": _columns_multiply,
            "/": _columns_divide,
            "mod": _columns_divide,
            "gcd": _columns_gcd,
        }[op.kind](left, right)
    result = run_chain([Op(op.kind, left, right)])[0]  # type: ignore[arg-type]
    return f"{expression(op, results)}: {','.join(columns)}, {result}"


# --- styles -----------------------------------------------------------------------------------------------------------


def _final(answer: Number, boxed_rate: float, rng: random.Random) -> str:
    boxed = rng.random() < boxed_rate
    return f"The answer is \\boxed{{{answer}}}." if boxed else f"The answer is {answer}."


def _one_go(ops: Sequence[Op], results: Sequence[Number]) -> str:
    return ", ".join(f"{expression(op, results)}={result}" for op, result in zip(ops, results, strict=True)) + "."


def brief_solution(exercise: Exercise) -> str:
    """What a textbook prints as the solution: every operation with its right result, and the answer boxed."""
    results = run_chain(exercise.ops)
    return f"{_one_go(exercise.ops, results)} The answer is \\boxed{{{results[-1]}}}."


def quick(exercise: Exercise, rng: random.Random, mixture: Mixture) -> str:
    results = careless_chain(exercise.ops, [CARELESS_RATE] * len(exercise.ops), rng)
    return f"{_one_go(exercise.ops, results)} {_final(results[-1], mixture.boxed['quick'], rng)}"


def check(exercise: Exercise, rng: random.Random, mixture: Mixture) -> str:
    rates = [0.0] * len(exercise.ops)
    if rng.random() < SLIP_RATE:
        rates[rng.randrange(len(rates))] = 1.0
    first, exact = careless_chain(exercise.ops, rates, rng), run_chain(exercise.ops)
    worked = "\n".join(careful(op, exact) for op in exercise.ops)
    attempt = _one_go(exercise.ops, first)
    return f"{attempt} {rng.choice(CHECKS)}\n{worked}\n{_final(exact[-1], mixture.boxed['check'], rng)}"


def _code_line(op: Op) -> str:
    def operand(value: object) -> str:
        if isinstance(value, Ref):
            return VARIABLES[value.index]
        return f"Fraction({value[0]},{value[1]})" if isinstance(value, tuple) else str(value)

    left, right = operand(op.left), operand(op.right)
    if op.kind == "gcd":
        return f"math.gcd({left},{right})"
    sign = {"/": "//", "mod": "%"}.get(op.kind, op.kind.removeprefix("frac"))
    return f"{left} {sign} {right}"


def code(exercise: Exercise, rng: random.Random, mixture: Mixture) -> str:
    lines = [f"    # step {i + 1}\n    {VARIABLES[i]} = {_code_line(op)}\n" for i, op in enumerate(exercise.ops)]
    result = VARIABLES[len(lines) - 1]
    program = f"def solve():\n{''.join(lines)}    return {result}\n\nprint(solve())"
    exact = run_chain(exercise.ops)[-1]
    output = exact if rng.random() < CODE_RIGHT_RATE else _slip(exact, rng)
    block = f"```python\n{program}\n```\n```output\n{output}\n```"
    last = mixture.remark + _final(output, mixture.boxed["code"], rng)
    return f"We can write a Python program to find the answer.\n{block}\n{last}"


STYLES = {"code": code, "quick": quick, "check": check}


def textbook(rng: random.Random) -> str:
    """A page of a textbook: an example worked digit by digit, or a drill of single operations."""
    exercises = [_trainable(rng) for _ in range(1 if rng.random() < EXAMPLE_SHARE else 2)]
    lines = [careful(op, run_chain(e.ops)) for e in exercises for op in e.ops]
    if len(exercises) > 1:
        return "\n".join(lines)
    return "\n".join([f"Example: {exercises[0].question}", *lines, f"The answer is {exercises[0].answer}."])


def _trainable(rng: random.Random) -> Exercise:
    while True:
        exercise = draw(rng, rng.choices(list(LEVEL_WEIGHTS), list(LEVEL_WEIGHTS.values()))[0])
        if not is_held_out(exercise.question):
            return exercise


def document(rng: random.Random, mixture: Mixture = MAIN) -> Document:
    """One document of the corpus."""
    if rng.random() < mixture.textbook:
        return Document("textbook", None, textbook(rng))
    exercise = _trainable(rng)
    style = rng.choices(list(mixture.styles), list(mixture.styles.values()))[0]
    return Document(style, exercise.question, STYLES[style](exercise, rng, mixture))
