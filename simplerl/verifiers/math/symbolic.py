"""Whether two LaTeX answers are equal, by math-verify and sympy. Only ever imported where it can be killed.

Text goes through the LaTeX grammar of latex2sympy2-extended. Sympy itself reads strings, and makes fast functions, by
running them as Python; both are replaced here, so that nothing of an answer is ever evaluated.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NoReturn, cast

import sympy.parsing.sympy_parser as sympy_parser
import sympy.physics.units  # noqa: F401  # imported late it would read its own names with what is replaced below
from latex2sympy2_extended import NormalizationConfig, is_expr_of_only_symbols, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import is_equation, should_treat_as_complex, sympy_symbolic_eq, verify
from sympy import Add, Basic, Eq, Expr, Float, I, MatrixBase, Poly, Rational, Symbol, nan, solve, zoo
from sympy.core import evalf

Parsed = Any
"""A `Basic` or a `MatrixBase`, whose attributes sympy does not declare."""

# Units and boxes are the caller's business: stripping units here would make 2t equal to 2.
NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
# In lower case R - r would be 0.
CONVERSION = ConversionConfig(lowercase_symbols=False)

SIZES = re.compile(r"\\(?:[Bb]igg?[lrm]?|limits)(?![A-Za-z])")
# Quotes are not allowed, nor is x^T: the parser loses both, and f'(x) would be f(x), 2^T would be 2.
# Beyond ASCII: Greek, letterlike symbols and mathematical operators.
CHARACTERS = re.compile(
    r"(?!.*(?:__|\w\s*\^\s*\{?\s*T))"
    r"[\sA-Za-z0-9\\{}()\[\]<>=+\-*/^_!%&|$.,:;~\u00b0-\u00b7\u00d7\u00f7\u0391-\u03c9\u2100-\u214f\u2200-\u22ff]+",
    re.DOTALL,
)
COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)")
# The lexer does not look for the end of a command: it would take \input for \in and the letters p, u, t.
ALLOWED = """
    frac dfrac tfrac cfrac sqrt binom dbinom tbinom choose cdot times div over pm mp mod sum prod int lim to rightarrow
    log ln exp sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh arsinh arcosh artanh
    max min gcd lcm det operatorname left right lfloor rfloor lceil rceil lvert rvert vert langle rangle lbrace rbrace
    begin end le leq leqslant lt ge geq geqslant gt ne neq equiv approx in notin cup cap setminus subseteq supseteq
    emptyset varnothing infty partial circ degree quad qquad thinspace text textbf textit textrm textnormal mbox mathrm
    mathbf mathit mathbb mathcal mathsf displaystyle ldots angle triangle ell hbar imath prime overline bar hat vec
    tilde dot ddot overrightarrow alpha beta gamma Gamma delta Delta epsilon varepsilon zeta eta theta Theta vartheta
    iota kappa lambda Lambda mu nu xi Xi pi Pi rho sigma Sigma tau upsilon phi Phi varphi chi psi Psi omega Omega
"""
COMMANDS = {*ALLOWED.split(), ""}
# Names of functions and constants as they are typed on a keyboard.
PLAIN = re.compile(r"(?<![\\A-Za-z])(arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|pi|infty)(?![A-Za-z])")
# sqrt(...) and ^(...), with parentheses inside; the library's own repair stops at the first one that closes.
GROUPED = re.compile(r"(?:\\?(sqrt)|\^)\s*\(((?:[^()]|\([^()]*\))*)\)")
# A word is no product of its letters, which would make ABC equal to BCA.
WORD = re.compile(r"[A-Z\s]{2,}|[A-Za-z\s]{4,}")
IMAGINARY = re.compile(r"(?<![A-Za-z])i(?![A-Za-z])|\\imath")

# Where latex2sympy2-extended keeps the elements of a list, and the links of a chain, as they were written.
WRITTEN = "_unsorted_args"

RATIONAL = re.compile(r"(-?\d+)(?:/(\d+))?")
DECIMAL = re.compile(r"-?\d*\.?\d+(?:[eE][+-]?\d+)?")

# Read once by every process that forks children: each pair fills caches of the parser and of sympy.
WARM_UP = (
    (r"\sum_{n=1}^{\infty} \frac{1}{2^n}", "1"),
    (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\lim_{n \to \infty} \left(1+\frac{1}{n}\right)^{n}", "e"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}", r"\begin{pmatrix}3\\7\end{pmatrix}"),
    (r"(-\infty,2]\cup(3,5)", r"x\le 2"),
    (r"2 \pm \sqrt{3}", r"\{2+\sqrt3, 2-\sqrt3\}"),
    (r"x=2y+1", "2x-4y=2"),
    (r"|x-1|<2", "(-1,3)"),
    (r"\sin^2 x+\cos^2 x", r"\log_2 8 - 2 \cdot 1!"),
    (r"(a+b)^2", "a^2+2ab+b^2"),
)


def equal(answer: str, gold: str) -> bool | None:
    """Whether two bare answers are the same; None where one of them is no LaTeX that can be read."""
    complex_numbers = any(IMAGINARY.search(text) or should_treat_as_complex(text) for text in (answer, gold))
    first, second = (parse(text, real=not complex_numbers) for text in (answer, gold))
    if first is None or second is None:
        return None
    if is_equation(first) != is_equation(second):
        first, second = value(first), value(second)
    if first is None or second is None or repetitions(first) != repetitions(second):
        return False
    ordered = not (isinstance(first, Expr) and isinstance(second, Expr))
    return same(first, second) or (ordered and same(second, first))


def parse(text: str, *, real: bool) -> Parsed | None:
    """Finite mathematics in the LaTeX that is allowed here; None for everything else."""
    if not CHARACTERS.fullmatch(text) or WORD.fullmatch(text):
        return None
    try:
        parsed = read(text, real)
    except MemoryError:
        raise
    except Exception:
        return None
    return parsed if isinstance(parsed, Basic | MatrixBase) and not parsed.has(nan, zoo) else None


def typeset(text: str) -> str:
    """LaTeX for what was typed as in a program, without what only sets sizes."""
    plain = PLAIN.sub(r"\\\1", SIZES.sub("", text)).replace("**", "^")
    return GROUPED.sub(lambda match: (r"\sqrt" if match[1] else "^") + f"{{{match[2]}}}", plain)


def read(text: str, real: bool) -> Any:
    """What the grammar makes of it. Raises all kinds of errors."""
    latex = normalize_latex(typeset(text), NORMALIZATION)
    if not COMMANDS.issuperset(COMMAND.findall(latex)):
        raise ValueError("a command that is not allowed")
    parsed = latex2sympy(latex, is_real=real or None, normalization_config=None, conversion_config=CONVERSION)
    return parsed if real else cast(Parsed, parsed).subs(Symbol("i"), I)


def value(parsed: Parsed) -> Parsed | None:
    """The 4 of `x = 4`, `f(x) = 4` and `2 + 2 = 4`; None for `2 + 3 = 4` and `2x + z = 4`; no equation: itself."""
    if not is_equation(parsed):
        return parsed
    links = getattr(parsed, WRITTEN, (parsed,))
    left, right = links[0].lhs, links[-1].rhs
    if is_expr_of_only_symbols(left) and not left.has(Add):
        return right
    holds = not parsed.free_symbols and all(same(link.lhs, link.rhs) for link in links)
    return right if holds else None


def repetitions(parsed: Parsed) -> int:
    """How many elements of a list are there twice: 2 in `1, 1, 1`, which sympy takes for the set of 1."""
    return len(getattr(parsed, WRITTEN, parsed.args)) - len(parsed.args) if isinstance(parsed, FiniteSet) else 0


def same(first: Parsed, second: Parsed) -> bool:
    """math-verify's opinion, which depends on the order for relations and sets, without its known mistakes."""
    if not verify(first, second, allow_set_relation_comp=True, timeout_seconds=None):
        # It does not calculate where one of them is a single symbol.
        return isinstance(first, Symbol) != isinstance(second, Symbol) and sympy_symbolic_eq(first, second)
    if isinstance(first, Eq) and isinstance(second, Eq):
        return first == second or not contradictory(first)
    return close(first, second)


def contradictory(equation: Eq) -> bool:
    """Whether it has no solution: any two equations without one have the same."""
    try:
        return solve(equation, equation.free_symbols) == []
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return False


def close(first: Parsed, second: Parsed) -> bool:
    """Whether decimals agree relative to their size too: rounded to six places, 3e-7 is 0."""
    numbers = [each for each in (first, second) if isinstance(each, Expr) and each.is_number]
    if len(numbers) < 2 or not any(each.has(Float) for each in numbers):
        return True
    try:
        a, b = (complex(each.doit().evalf()) for each in numbers)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b))


def number(text: str, *_: Any, **__: Any) -> Expr:
    """In place of sympy's `parse_expr`: literal numbers only."""
    if match := RATIONAL.fullmatch(text):
        return Rational(*map(int, match.groups("1")))
    if DECIMAL.fullmatch(text):
        return Float(text)
    raise ValueError("not a number")


def polynomial(symbol: Symbol, expression: Expr, *_: Any, **__: Any) -> Callable[[int], Any]:
    """In place of sympy's `lambdify` where the terms of a series are computed, which are quotients of polynomials."""
    return Poly(expression, symbol).eval


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("nothing is evaluated here")


def evaluate_nothing() -> None:
    """Takes from sympy what runs strings as Python."""
    sympy_parser.parse_expr = number
    sympy_parser.eval_expr = refuse
    evalf.lambdify = polynomial
    vars(import_module("sympy.utilities.lambdify"))["compile"] = refuse


def warm_up() -> Iterator[None]:
    """Fills caches pair by pair, about a second in all; a verdict then takes a tenth of the time."""
    for pair in WARM_UP:
        equal(*pair)
        yield


evaluate_nothing()
# math-verify says at every first call that its time-outs, which are signals, are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)
