"""Compare two LaTeX answers with math-verify and sympy. Import it only in a process that can be killed.

The LaTeX grammar of latex2sympy2-extended parses the text. Sympy itself runs strings as Python, to parse expressions
and to compile functions. Importing this module replaces both, so that no part of an answer is run as code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NoReturn, cast

import sympy.parsing.sympy_parser as sympy_parser
import sympy.physics.units  # noqa: F401  # it parses its own names when imported, so before the replacement below
from latex2sympy2_extended import NormalizationConfig, is_expr_of_only_symbols, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import is_equation, should_treat_as_complex, sympy_symbolic_eq, verify
from sympy import Add, Basic, Eq, Expr, Float, I, MatrixBase, Poly, Rational, Symbol, nan, solve, zoo
from sympy.core import evalf

Parsed = Any
"""A `Basic` or a `MatrixBase`. `Any`, because sympy does not declare their attributes."""

# The caller handles units and boxes. Stripping units here would make 2t equal to 2.
NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
# Lower-casing would make R - r zero.
CONVERSION = ConversionConfig(lowercase_symbols=False)

SIZES = re.compile(r"\\(?:[Bb]igg?[lrm]?|limits)(?![A-Za-z])")
# Quotes and x^T are excluded: the parser drops both, so f'(x) would be f(x) and 2^T would be 2.
# Allowed beyond ASCII: Greek, letterlike symbols and mathematical operators.
CHARACTERS = re.compile(
    r"(?!.*(?:__|\w\s*\^\s*\{?\s*T))"
    r"[\sA-Za-z0-9\\{}()\[\]<>=+\-*/^_!%&|$.,:;~\u00b0-\u00b7\u00d7\u00f7\u0391-\u03c9\u2100-\u214f\u2200-\u22ff]+",
    re.DOTALL,
)
COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)")
# The lexer does not check where a command ends: it would read \input as \in and the letters p, u, t.
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
# Names of functions and constants, typed without a backslash.
TYPED = re.compile(r"(?<![\\A-Za-z])(arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|pi|infty)(?![A-Za-z])")
# sqrt(...) and ^(...), with parentheses inside. The library's own repair stops at the first closing parenthesis.
GROUPED = re.compile(r"(?:\\?(sqrt)|\^)\s*\(((?:[^()]|\([^()]*\))*)\)")
# A word is not a product of its letters. Otherwise ABC would equal BCA.
WORD = re.compile(r"[A-Z\s]{2,}|[A-Za-z\s]{4,}")
IMAGINARY = re.compile(r"(?<![A-Za-z])i(?![A-Za-z])|\\imath")

# Attribute in which latex2sympy2-extended keeps the elements of a list, or the equations of a chain, as written.
AS_WRITTEN = "_unsorted_args"

RATIONAL = re.compile(r"(-?\d+)(?:/(\d+))?")
DECIMAL = re.compile(r"-?\d*\.?\d+(?:[eE][+-]?\d+)?")

# Compared once by a worker before it forks children: each pair fills caches of the parser and of sympy.
WARM_UP_PAIRS = (
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
    """True if two bare answers are equal. None: one of them is not LaTeX that can be parsed."""
    complex_numbers = any(IMAGINARY.search(text) or should_treat_as_complex(text) for text in (answer, gold))
    first, second = (parse(text, real=not complex_numbers) for text in (answer, gold))
    if first is None or second is None:
        return None
    if is_equation(first) != is_equation(second):
        first, second = equation_value(first), equation_value(second)
    if first is None or second is None or count_repeats(first) != count_repeats(second):
        return False
    order_matters = not (isinstance(first, Expr) and isinstance(second, Expr))
    return matches(first, second) or (order_matters and matches(second, first))


def parse(text: str, *, real: bool) -> Parsed | None:
    """Parse an answer. None: not in the LaTeX allowed here, or not finite."""
    if not CHARACTERS.fullmatch(text) or WORD.fullmatch(text):
        return None
    try:
        parsed = parse_latex(text, real)
    except MemoryError:
        raise
    except Exception:
        return None
    return parsed if isinstance(parsed, Basic | MatrixBase) and not parsed.has(nan, zoo) else None


def to_latex(text: str) -> str:
    """Replace program-style notation (`sqrt(x)**2`, `pi`) by LaTeX, and remove commands that only set sizes."""
    latex = TYPED.sub(r"\\\1", SIZES.sub("", text)).replace("**", "^")
    return GROUPED.sub(lambda match: (r"\sqrt" if match[1] else "^") + f"{{{match[2]}}}", latex)


def parse_latex(text: str, real: bool) -> object:
    """Parse with the library's grammar. Raises many kinds of exceptions."""
    latex = normalize_latex(to_latex(text), NORMALIZATION)
    if not COMMANDS.issuperset(COMMAND.findall(latex)):
        raise ValueError("a LaTeX command that is not allowed")
    parsed = latex2sympy(latex, is_real=real or None, normalization_config=None, conversion_config=CONVERSION)
    return parsed if real else cast(Parsed, parsed).subs(Symbol("i"), I)


def equation_value(parsed: Parsed) -> Parsed | None:
    """The 4 of `x = 4`, `f(x) = 4` and `2 + 2 = 4`. None: no such value, as in `2 + 3 = 4` and `2x + z = 4`.

    Anything but an equation is returned as it is.
    """
    if not is_equation(parsed):
        return parsed
    equations = getattr(parsed, AS_WRITTEN, (parsed,))
    left, right = equations[0].lhs, equations[-1].rhs
    if is_expr_of_only_symbols(left) and not left.has(Add):
        return right
    holds = not parsed.free_symbols and all(matches(each.lhs, each.rhs) for each in equations)
    return right if holds else None


def count_repeats(parsed: Parsed) -> int:
    """Number of repeated elements of a list: 2 in `1, 1, 1`, which sympy parses as the set {1}."""
    return len(getattr(parsed, AS_WRITTEN, parsed.args)) - len(parsed.args) if isinstance(parsed, FiniteSet) else 0


def matches(first: Parsed, second: Parsed) -> bool:
    """Ask math-verify, and correct its known mistakes. The order matters for relations and sets."""
    if not verify(first, second, allow_set_relation_comp=True, timeout_seconds=None):
        # It does not simplify if one of them is a single symbol.
        return isinstance(first, Symbol) != isinstance(second, Symbol) and sympy_symbolic_eq(first, second)
    if isinstance(first, Eq) and isinstance(second, Eq):
        return first == second or not has_no_solution(first)
    return decimals_agree(first, second)


def has_no_solution(equation: Eq) -> bool:
    """True if an equation has no solution. math-verify compares solutions, so any two such equations would be equal."""
    try:
        return solve(equation, equation.free_symbols) == []
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return False


def decimals_agree(first: Parsed, second: Parsed) -> bool:
    """True if decimals agree to 1e-5 of their size. math-verify rounds to six places, which makes 3e-7 zero."""
    numbers = [each for each in (first, second) if isinstance(each, Expr) and each.is_number]
    if len(numbers) < 2 or not any(each.has(Float) for each in numbers):
        return True
    try:
        a, b = (complex(each.doit().evalf()) for each in numbers)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(a - b) <= 1e-5 * max(abs(a), abs(b))


def parse_number(text: str, *_: object, **__: object) -> Expr:
    """Replacement of sympy's `parse_expr` that accepts only literal numbers."""
    if match := RATIONAL.fullmatch(text):
        return Rational(*map(int, match.groups("1")))
    if DECIMAL.fullmatch(text):
        return Float(text)
    raise ValueError("not a number")


def polynomial_function(symbol: Symbol, expression: Expr, *_: object, **__: object) -> Callable[[int], object]:
    """Replacement of sympy's `lambdify` in `evalf`, which uses it for the terms of a series: ratios of polynomials."""
    return Poly(expression, symbol).eval


def refuse(*_: object, **__: object) -> NoReturn:
    raise NotImplementedError("strings are not run as Python here")


def disable_evaluation() -> None:
    """Replace the functions of sympy that run strings as Python."""
    sympy_parser.parse_expr = parse_number
    sympy_parser.eval_expr = refuse
    evalf.lambdify = polynomial_function
    vars(import_module("sympy.utilities.lambdify"))["compile"] = refuse


def warm_up() -> Iterator[None]:
    """Fill the caches, one pair per step, about a second in all. A comparison then takes a tenth of the time."""
    for pair in WARM_UP_PAIRS:
        equal(*pair)
        yield


disable_evaluation()
# Without this, the first call of every process logs a warning that math-verify's own time-outs (signals) are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)
