r"""What holds for every answer, not just for the listed ones: properties of the exact path, checked on random answers.

Random expression trees are written in LaTeX and as plain text, rewritten without and with a change of value, put into
lists, tuples and sets; random text must neither raise nor take long. The examples are the same in every run.
"""

from __future__ import annotations

import math
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from simplerl.verifiers.math.compare import compare
from simplerl.verifiers.math.extract import extract
from simplerl.verifiers.math.normalise import surface
from simplerl.verifiers.math.parse import parse
from simplerl.verifiers.math.reader import Unreadable

pytestmark = pytest.mark.unit

CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
# Shrinking a failure takes minutes; the examples are small as they are.
PHASES = [Phase.explicit, Phase.generate]
PROFILE = settings(
    derandomize=True, database=None, deadline=None, max_examples=80, suppress_health_check=CHECKS, phases=PHASES
)
FEW = settings(PROFILE, max_examples=30)
SECONDS = 0.5
"""Processor time one call may take; ordinary ones take microseconds."""


# --- random expressions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """An expression: `op` is a key of LATEX and PLAIN, or "number" and "name" with the text itself as only argument."""

    op: str
    args: tuple[Tree | str, ...]

    def latex(self) -> str:
        return LATEX[self.op].format(*(a if isinstance(a, str) else a.latex() for a in self.args))

    def plain(self) -> str:
        return PLAIN[self.op].format(*(a if isinstance(a, str) else a.plain() for a in self.args))


LATEX = {
    "number": "{0}", "name": "{0}", "pi": r"\pi", "add": "{0}+{1}", "sub": r"{0}-\left({1}\right)",
    "mul": r"\left({0}\right)\left({1}\right)", "div": r"\frac{{{0}}}{{{1}}}", "pow": r"\left({0}\right)^{{{1}}}",
    "sqrt": r"\sqrt{{{0}}}", "neg": r"-\left({0}\right)", "sin": r"\sin\left({0}\right)",
}  # fmt: skip
PLAIN = {
    "number": "{0}", "name": "{0}", "pi": "pi", "add": "{0} + {1}", "sub": "{0} - ({1})", "mul": "({0})*({1})",
    "div": "({0})/({1})", "pow": "({0})^({1})", "sqrt": "sqrt({0})", "neg": "-({0})", "sin": "sin({0})",
}  # fmt: skip


def number(value: int) -> Tree:
    return Tree("number", (str(value),))


def apply(op: str, *args: Tree) -> Tree:
    return Tree(op, args)


NUMBERS = st.integers(1, 30).map(number)
NAMES = st.sampled_from("xyn").map(lambda name: Tree("name", (name,)))
ATOMS = st.one_of(NUMBERS, NAMES, st.just(Tree("pi", ())))


def compound(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    """Operations that have a real value whatever the variables are."""
    two = st.tuples(inner, inner)
    return st.one_of(
        st.builds(lambda op, ab: apply(op, *ab), st.sampled_from(["add", "sub", "mul"]), two),
        st.builds(lambda a, n: apply("div", a, n), inner, NUMBERS),
        st.builds(lambda a, n: apply("pow", a, n), inner, st.integers(2, 3).map(number)),
        st.builds(lambda n: apply("sqrt", n), NUMBERS),
        st.builds(lambda a: apply("neg", a), inner),
        st.builds(lambda a: apply("sin", a), NAMES),
    )


TREES = st.recursive(ATOMS, compound, max_leaves=6)
INTEGERS = st.integers(-10_000, 10_000)
FRACTIONS = st.fractions(-50, 50, max_denominator=60)
SURDS = st.builds(lambda a, b: rf"{a}\sqrt{{{b}}}", st.integers(2, 9), st.sampled_from([2, 3, 5, 7, 11]))
VALUES = st.one_of(INTEGERS.map(str), FRACTIONS.map(lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"), SURDS)


def equal(answer: str, gold: str) -> bool | None:
    return compare(answer, gold).equal


def same(answer: str, gold: str) -> None:
    found = compare(answer, gold), compare(gold, answer)
    assert [f.equal for f in found] == [True, True], (answer, gold, found)


def different(answer: str, gold: str) -> None:
    found = compare(answer, gold), compare(gold, answer)
    assert not any(f.equal for f in found), (answer, gold, found)


# --- expressions ------------------------------------------------------------------------------------------------------


@PROFILE
@given(TREES)
def test_latex_and_plain_text_of_an_expression_are_equal(tree):
    same(tree.latex(), tree.plain())


@PROFILE
@given(TREES, TREES, NUMBERS)
def test_rewriting_that_keeps_the_value_keeps_the_verdict(a, b, n):
    same(apply("add", a, b).latex(), apply("add", b, a).latex())
    same(apply("mul", a, b).latex(), apply("mul", b, a).plain())
    same(apply("mul", n, apply("add", a, b)).latex(), apply("add", apply("mul", n, a), apply("mul", n, b)).latex())
    same(apply("div", a, n).latex(), apply("div", apply("mul", number(2), a), apply("mul", number(2), n)).latex())
    same(apply("sub", a, b).latex(), apply("neg", apply("sub", b, a)).latex())
    same(apply("pow", a, number(2)).latex(), apply("mul", a, a).plain())


@PROFILE
@given(TREES, st.integers(1, 9))
def test_an_expression_is_not_the_same_with_something_added(tree, k):
    different(apply("add", tree, number(k)).latex(), tree.latex())
    different(apply("add", tree, Tree("name", ("y",))).latex(), tree.plain())


@PROFILE
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_polynomials_are_equal_exactly_when_their_coefficients_are(a, b, c, d):
    product, written_out = f"({a}x+{c})({b}x-{d})", f"{a * b}x^2+{b * c - a * d}x-{c * d}".replace("+-", "-")
    same(product, written_out)
    different(product, f"{a * b + 1}x^2+{b * c - a * d}x-{c * d}".replace("+-", "-"))
    if d:
        different(product, f"({a}x+{c})({b}x+{d})")


@PROFILE
@given(st.integers(2, 400), st.integers(2, 400))
def test_roots_are_simplified_and_rationalised(a, b):
    same(rf"\sqrt{{{a * b * b}}}", rf"{b}\sqrt{{{a}}}")
    same(rf"\frac{{{b}}}{{\sqrt{{{a}}}}}", rf"\frac{{{b}\sqrt{{{a}}}}}{{{a}}}")
    different(rf"\sqrt{{{a}}}", rf"\sqrt{{{a + 1}}}")
    different(rf"{a}\sqrt{{{b}}}", rf"-{a}\sqrt{{{b}}}")


@FEW
@given(st.integers(1, 60))
def test_the_root_of_a_negative_number_is_on_the_upper_half_plane(n):
    same(rf"\sqrt{{-{n * n}}}", f"{n}i")
    different(rf"\sqrt{{-{n * n}}}", f"-{n}i")


@FEW
@given(st.integers(-99, 99), st.integers(1, 99), st.integers(2, 99))
def test_plus_minus_is_both_values(a, b, c):
    both = rf"{a}\pm {b}\sqrt{{{c}}}"
    plus, minus = rf"{a}+{b}\sqrt{{{c}}}", rf"{a}-{b}\sqrt{{{c}}}"
    same(both, f"{minus}, {plus}")
    same(both.replace(r"\pm", "\u00b1"), rf"\{{{plus}, {minus}\}}")
    different(both, plus)
    different(both, f"{plus}, {plus}")


# --- numbers ----------------------------------------------------------------------------------------------------------


def notations(n: int) -> list[str]:
    """Ways to write an integer."""
    grouped = f"{n:,}"
    wrapped = [f"${n}$", rf"\({n}\)", rf"\boxed{{{n}}}", rf"\text{{{n}}}", rf"\mathbf{{{n}}}", f"{n}.", f"x = {n}"]
    spaced = [grouped.replace(",", gap) for gap in (",", "{,}", r"\,", r",\!", " ")] if abs(n) >= 10_000 else []
    units = [f"{n} apples", rf"{n}\text{{ cm}}", rf"{n}\ \mathrm{{kg}}", rf"\${n}", f"{n} dollars", rf"{n}^\circ"]
    return [*wrapped, *spaced, *units, f"{n}.0", rf"\frac{{{3 * n}}}{{3}}", str(n).replace("-", "\u2212")]


@PROFILE
@given(st.integers(-(10**9), 10**9))
def test_every_notation_of_a_number_is_that_number(n):
    for written in notations(n):
        same(written, str(n))


@PROFILE
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
@example(10_000_000, 10_000_001)
@example(5, -5)
def test_no_notation_of_a_number_is_another_number(n, m):
    assume(n != m)
    exact = [w for w in notations(n) if ".0" not in w]
    for written in exact:
        different(written, str(m))


@PROFILE
@given(st.integers(10, 60), st.integers(1, 9))
def test_large_numbers_are_compared_to_the_last_digit(digits, k):
    big = 7 * 10**digits + 3
    for before, after in (("", ""), ("x = ", ""), ("", "n"), ("", r"\pi"), ("y = ", "x+1"), ("(", ",1)")):
        different(f"{before}{big}{after}", f"{before}{big + k}{after}")


@PROFILE
@given(FRACTIONS, FRACTIONS)
def test_fractions_are_compared_exactly(a, b):
    forms = [
        f"{a.numerator}/{a.denominator}",
        rf"\dfrac{{{a.numerator}}}{{{a.denominator}}}",
        rf"-\frac{{{-a.numerator}}}{{{a.denominator}}}",
        rf"\frac{{{7 * a.numerator}}}{{{7 * a.denominator}}}",
    ]
    for form in forms:
        same(form, rf"\frac{{{a.numerator}}}{{{a.denominator}}}")
        if a != b:
            different(form, rf"\frac{{{b.numerator}}}{{{b.denominator}}}")


@FEW
@given(st.integers(1, 9), st.integers(1, 20), st.integers(2, 21))
def test_mixed_numbers(whole, a, b):
    assume(a < b)
    same(rf"{whole}\frac{{{a}}}{{{b}}}", f"{whole * b + a}/{b}")
    same(f"-{whole} {a}/{b}", f"-{whole * b + a}/{b}")
    for product in (
        rf"{whole}\cdot\frac{{{a}}}{{{b}}}",
        f"{whole}({a}/{b})",
        rf"({whole})\left(\frac{{{a}}}{{{b}}}\right)",
    ):
        same(product, f"{whole * a}/{b}")
        different(product, rf"{whole}\frac{{{a}}}{{{b}}}")


@PROFILE
@given(st.integers(1, 10**6), st.integers(0, 6), st.floats(2e-4, 10))
def test_decimals_may_be_off_by_a_ten_thousandth_of_the_gold(digits, places, off):
    value = Fraction(digits, 10**places)
    written = f"{float(value):.6f}"
    same(written, rf"\frac{{{digits}}}{{{10**places}}}")
    different(f"{float(value) * (1 + off):.12f}", written)
    different(f"-{written}", written)


@PROFILE
@given(st.integers(1, 999))
def test_a_percentage_is_its_number_and_its_hundredth_but_nothing_is_a_hundred_times_itself(n):
    for sign in ("%", r"\%", " percent", r"\text{ percent}"):
        same(f"{n}{sign}", str(n))
        same(f"{n}{sign}", rf"\frac{{{n}}}{{100}}")
        different(f"{n}{sign}", str(100 * n))
    different(str(n), str(100 * n))
    different(str(n), f"{n / 100}")


# --- units and words --------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 500), st.sampled_from(["apples", "cm", "dollars", "square units", "ways", "degrees"]))
def test_words_behind_a_number_change_neither_its_sign_nor_its_digits(n, unit):
    for number_, other in ((f"{n}", f"-{n}"), (f"-{n}", f"{n}"), (f"{n}.5", f"{n}5"), (f"{n}", f"{n + 1}")):
        same(f"{number_} {unit}", number_)
        same(rf"{number_}\text{{ {unit}}}", f"{number_} {unit}")
        different(f"{number_} {unit}", f"{other} {unit}")
        different(rf"{number_}\text{{ {unit}}}", rf"{other}\text{{ {unit}}}")


WORDS = [
    r"\text{ or 6}", r"\text{6}", r"\text{.6}", r"\text{ (or 6)}", r"\text{^2}", r"\text{ squared}", " cubed",
    " halves", r"\text{ or more}", r"\text{ million dollars}", r"\text{ dozen eggs}", " hundredths", " factorial",
]  # fmt: skip


@pytest.mark.parametrize("more", WORDS)
def test_words_that_change_the_value_are_no_units(more):
    different(f"5{more}", "5")


@FEW
@given(st.integers(1, 500))
def test_units_are_converted(n):
    for one, other, factor in (("m", "cm", 100), ("hours", "minutes", 60), ("feet", "inches", 12), ("kg", "g", 1000)):
        same(rf"{n}\text{{ {one}}}", rf"{factor * n}\text{{ {other}}}")
        different(rf"{n}\text{{ {one}}}", rf"{n}\text{{ {other}}}")


NAMES_OF_PEOPLE = st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=12)


@PROFILE
@given(NAMES_OF_PEOPLE, st.randoms(use_true_random=False))
def test_words_are_compared_as_words(word, rng):
    for written in (word.upper(), rf"\text{{{word}}}", rf"\textbf{{ {word} }}", f"{word}."):
        same(written, word)
    shuffled = "".join(rng.sample(word, len(word)))
    if shuffled != word:
        different(shuffled, word)
    different(f"not {word}", word)


@pytest.mark.parametrize("gold", "ABCDE")
def test_a_choice_is_one_letter(gold):
    for written in (
        f"({gold})",
        rf"\text{{{gold}}}",
        rf"\textbf{{({gold})}}",
        f"{gold}.",
        f"{gold}) 15",
        f"({gold}) 15",
    ):
        same(written, gold)
    for other in "ABCDE".replace(gold, ""):
        for hedge in (
            other,
            f"({other})",
            f"({gold})({other})",
            f"({gold}), ({other})",
            f"({gold}) or ({other})",
            f"{gold}) or {other})",
            f"{gold}, {other}",
            f"{gold} and {other}",
            f"{other}: {gold}",
            f"-{gold}",
        ):
            assert not equal(hedge, gold), (hedge, gold)


# --- collections ------------------------------------------------------------------------------------------------------


LISTS = st.lists(INTEGERS, min_size=2, max_size=6, unique=True)


@PROFILE
@given(LISTS, st.randoms(use_true_random=False))
def test_lists_and_sets_have_no_order(values, rng):
    first = ", ".join(map(str, values))
    second = ", ".join(map(str, rng.sample(values, len(values))))
    same(first, second)
    same(rf"\{{{first}\}}", second)
    same(rf"\left\{{{first}\right\}}", rf"\{{{second}\}}")
    head, _, tail = first.rpartition(", ")
    same(rf"{head} \text{{ and }} {tail}", second)
    same(f"{head} or {tail}", second)
    same(first.replace(", ", ";"), second)


@PROFILE
@given(LISTS, INTEGERS)
def test_a_list_with_an_element_more_or_less_or_changed_is_wrong(values, other):
    assume(other not in values)
    gold = ", ".join(map(str, values))
    for changed in (values[1:], values[:-1], [*values, other], [other, *values[1:]]):
        different(", ".join(map(str, changed)), gold)
        different(rf"\{{{', '.join(map(str, changed))}\}}", rf"\{{{gold}\}}")
    for each in values:
        different(str(each), gold)


@PROFILE
@given(st.lists(VALUES, min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_tuples_are_ordered(values, rng):
    gold = f"({','.join(values)})"
    same(rf"\left( {', '.join(values)} \right)", gold)
    column = r" \\ ".join(values)
    same(rf"\begin{{pmatrix}} {column} \end{{pmatrix}}", gold)
    swapped = rng.sample(values, len(values))
    if not all(equal(a, b) for a, b in zip(swapped, values, strict=True)):
        different(f"({','.join(swapped)})", gold)
    different(f"({','.join(values[:-1])})", gold)
    different(f"({','.join([*values, '1'])})", gold)


@PROFILE
@given(st.lists(st.tuples(INTEGERS, INTEGERS), min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_a_list_of_points_has_no_order_but_its_points_have(points, rng):
    def written(chosen: list[tuple[int, int]]) -> str:
        return ", ".join(f"({x}, {y})" for x, y in chosen)

    same(written(rng.sample(points, len(points))), written(points))
    same(rf"\{{{written(points)}\}}", written(points))
    swapped = [(y, x) for x, y in points]
    if set(swapped) != set(points):
        different(written(swapped), written(points))
    different(written(points[1:]), written(points))
    crossed = [(points[0][0], points[1][1]), (points[1][0], points[0][1]), *points[2:]]
    if set(crossed) != set(points):
        different(written(crossed), written(points))


INTERVALS = st.tuples(INTEGERS, INTEGERS).filter(lambda ends: ends[0] < ends[1])
SIDES = {"[": r"\le", "(": "<", "]": r"\le", ")": "<"}


@PROFILE
@given(INTERVALS, st.sampled_from("[("), st.sampled_from("])"))
def test_an_interval_is_its_inequality_and_its_brackets_count(ends, left, right):
    (a, b), interval = ends, f"{left}{ends[0]},{ends[1]}{right}"
    same(f"{a} {SIDES[left]} x {SIDES[right]} {b}", interval)
    same(rf"x \in \left{left}{a}, {b}\right{right}", interval)
    same(rf"\{{x \mid {a} {SIDES[left]} x {SIDES[right]} {b}\}}", interval)
    for other in ("[]", "[)", "(]", "()"):
        if other != left + right:
            different(f"{other[0]}{a},{b}{other[1]}", interval)
    different(f"{left}{b},{a}{right}", interval)
    if left + right != "()":
        different(f"{a}, {b}", interval)
    different(rf"\{{{a}, {b}\}}", interval)


@PROFILE
@given(INTEGERS, st.sampled_from(["<", ">", r"\le", r"\ge"]))
def test_half_lines(a, op):
    closed = op.startswith("\\")
    below = op in ("<", r"\le")
    line = rf"(-\infty,{a}{'])'[not closed]}" if below else rf"{'[('[not closed]}{a},\infty)"
    mirrored = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[op]
    same(f"x {op} {a}", line)
    same(f"{a} {mirrored} x", line)
    same(f"-x {mirrored} {-a}", line)
    same(f"3x {op} {3 * a}", line)
    different(f"x {mirrored} {a}", line)
    different(f"x {op} {a + 1}", line)
    different(f"x {op} {a}", str(a))


def test_relations_that_have_a_direction_are_not_turned_round():
    for op in (r"\to", r"\mapsto", r"\subset", r"\in", "->", "<"):
        different(f"a {op} b", f"b {op} a")


@PROFILE
@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-20, 20), st.integers(-4, 4))
def test_an_equation_may_be_multiplied_and_turned_round(a, b, c, k):
    assume(k and a and b)
    gold = f"{a}x+{b}y={c}".replace("+-", "-")
    same(f"{k * a}x+{k * b}y={k * c}".replace("+-", "-"), gold)
    same(f"{c}={b}y+{a}x".replace("+-", "-"), gold)
    same(f"{a}x+{b}y-{c}=0".replace("+-", "-").replace("--", "+"), gold)
    different(f"{a}x+{b}y={c + 1}".replace("+-", "-"), gold)
    different(f"{a + 1}x+{b}y={c}".replace("+-", "-"), gold)
    different(f"{a}x+{b}z={c}".replace("+-", "-"), gold)
    different(str(c), gold)


@FEW
@given(INTEGERS, INTEGERS, INTEGERS, INTEGERS)
def test_two_contradictions_are_not_equal(a, b, c, d):
    assume(a != b and c != d and {a, b} != {c, d})
    different(f"{a} = {b}", f"{c} = {d}")
    different(f"{a} = {b}", str(b))


@FEW
@given(st.integers(0, 99), st.integers(10, 99), st.integers(1, 9))
def test_a_comma_in_a_list_is_no_decimal_point(a, b, k):
    different(f"{a},{b}", f"{a},{b + k}")
    different(f"[{a},{b}]", f"{a},{b}")
    different(f"({a},{100 + b})", f"[{a},{100 + b}]")
    different(f"({b},{100 + k})", f"{b}{100 + k}")


@FEW
@given(st.integers(1, 12), st.integers(2, 5))
def test_matrices_are_compared_by_their_entries(a, n):
    rows = [[a + i * n + j for j in range(n)] for i in range(2)]

    def written(entries: list[list[int]], kind: str = "pmatrix") -> str:
        return rf"\begin{{{kind}}}" + r" \\ ".join(" & ".join(map(str, row)) for row in entries) + rf"\end{{{kind}}}"

    same(written(rows, "bmatrix"), written(rows))
    same("2" + written(rows), written([[2 * x for x in row] for row in rows]))
    different(written([list(column) for column in zip(*rows, strict=True)]), written(rows))
    different(written(rows[::-1]), written(rows))
    different(written([[x + 1 for x in row] for row in rows]), written(rows))


# --- spelling ---------------------------------------------------------------------------------------------------------


GOLDS = [
    r"\frac{1}{2}", r"2\sqrt{3}", r"(-\infty, 2] \cup [3, \infty)", r"\left( 3, \frac{\pi}{2} \right)", r"x^2+2x+1",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"3 \pm 2\sqrt{5}", r"\{1, 2, 3\}", r"x = -4", r"\text{Evelyn}",
    r"\frac{x+1}{x-1}", r"\binom{n}{2}", r"y = 2x + 3", r"10{,}080", r"12\%", r"\$4.50", r"5 \text{ cm}", r"30^\circ",
    r"(1,2), (3,4)", r"1 < x \le 5", r"\log_2 5", r"e^{i\pi/3}", r"3:4", r"101_2", r"\text{(C)}", r"x \in \mathbb{R}",
    r"\lfloor \frac{n}{2} \rfloor", r"|x-3|", r"f(x) = \frac{1}{x}", r"-\frac{11}{6}", r"0.\overline{36}", "3+4i",
    r"\sin^2 x", r"7!",
]  # fmt: skip


def respelled(text: str) -> list[str]:
    spaced = re.sub(r"(?<![\\a-zA-Z0-9])([=+,])(?![a-zA-Z])", r" \1 ", text)
    return [
        f"${text}$", f"$${text}$$", rf"\({text}\)", rf"\[ {text} \]", f"  {text}\n", rf"\displaystyle {text}",
        f"{text}.", text.replace(r"\frac", r"\dfrac"), text.replace(r"\frac", r"\tfrac"), text.replace("-", "\u2212"),
        spaced, text.replace(r"\left", "").replace(r"\right", ""), text.replace("(", "( ").replace(")", " )"),
        text.replace(r"\pi", "\u03c0 ").replace(r"\infty", "\u221e ").replace(r"\cup", "\u222a ")
        .replace(r"\le ", "\u2264 "),
    ]  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_spelling_does_not_matter(gold):
    for text in respelled(gold):
        same(text, gold)


def test_the_listed_golds_are_all_different():
    for i, one in enumerate(GOLDS):
        for other in GOLDS[i + 1 :]:
            different(one, other)


# --- any text ---------------------------------------------------------------------------------------------------------


PIECES = [
    r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "]", "|", "_", "^", "+", "-", "*", "**", "/", "=", "<", r"\le",
    r"\ne", r"\approx", r"\pm", r"\cup", r"\in", r"\to", ",", ";", ":", "!", r"\%", "%", "'", ".", r"\ldots", "1",
    "10", "0.5", "x", "n", "i", "C", r"\pi", r"\infty", r"\{", r"\}", r"\text{and}", r"\text{ cm}", r"\mathrm{m}",
    " and ", " or ", "apples", r"\sin", r"\log", r"\binom", r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\",
    r"\left", r"\right", r"\boxed", "$", r"^\circ", r"\overline", r"\vec", r"\mathbb{R}", r"\lfloor", r"\rfloor",
    r"\quad", " ", "\n", r"\sum", r"\int", "9^{9^9}", "million", r"\choose", r"\mid", "####", "the answer is ",
    "<answer>", "</answer>", "\u221a", "\u00bd",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
TEXT = st.one_of(SOUP, st.text(max_size=40), st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))


@settings(PROFILE, max_examples=300)
@given(TEXT)
@example("x_")
@example(r"\mathbf{u_}")
def test_any_text_equals_itself_and_nothing_raises(text):
    found = compare(text, text)
    assert found.equal or found.method == "empty"
    with suppress(Unreadable):
        parse(surface(text))


@settings(PROFILE, max_examples=300)
@given(TEXT, st.one_of(TEXT, st.sampled_from(GOLDS)))
@example("x_", "5")
def test_the_verdict_on_any_text_is_symmetric(one, other):
    assert (equal(one, other) is True) == (equal(other, one) is True)


@settings(PROFILE, max_examples=300)
@given(TEXT, st.sampled_from(GOLDS))
def test_extraction_never_raises_and_a_box_is_found_whatever_stands_before(text, gold):
    for choice in (False, True):
        extract(text, "evaluation", choice)
        extract(text, "reward", choice)
    assume("boxed" not in text and "fbox" not in text)
    response = f"{text}\n\nSo it is $\\boxed{{{gold}}}$."
    assert extract(response, "reward").answer == gold
    assert extract(response, "evaluation").answer == gold


@FEW
@given(
    INTEGERS, st.sampled_from(["The answer is {}.", "**Answer:** {}", "#### {}", "<answer>{}</answer>", "so x = {}"])
)
def test_a_number_is_found_without_a_box(n, phrase):
    answer = extract("First 17, then 4.\n" + phrase.format(n), "evaluation").answer
    assert answer is not None and equal(answer, str(n))


# --- bounded time -----------------------------------------------------------------------------------------------------


LONG = {
    "groups": "{" * 480 + "1" + "}" * 480, "brackets": "(" * 480 + "1" + ")" * 480, "bars": "|x" * 400,
    "fractions": r"\frac" * 190, "powers": "2" + "^2" * 400, "signs": "-" * 900 + "5", "plus-minus": r"\pm 1" * 190,
    "lists of plus-minus": ",".join([r"\pm 1"] * 150), "factorials": "5" + "!" * 900, "percents": "5" + "%" * 900,
    "digits": "7" * 990, "tower": "9^{9^{9^{9}}}", "roots": r"\sqrt{" * 140 + "x" + "}" * 140,
    "sum": "+".join("x" * 450), "product": "(x+1)" * 190, "matrices": r"\begin{pmatrix}a&b\\c&d\end{pmatrix}" * 12,
    "elements": ",".join("7" * 490), "expressions": ",".join(rf"\sin({k}x)" for k in range(60)),
    "blanks": " " * 10**5, "backslashes": "\\" * 10**5,
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_comparing_takes_no_time_whatever_the_text(name):
    text = LONG[name]
    started = time.process_time()
    compare(text, text.replace("1", "2").replace("x", "y").replace("a&b", "b&a"))
    compare(text, "5")
    compare("1,2", text)
    assert time.process_time() - started < 3 * SECONDS


RESPONSES = {
    "boxes": r"\boxed{1}" * 20_000, "open boxes": r"\boxed{" * 20_000, "empty boxes": r"\boxed{}" * 20_000,
    "nested boxes": r"\boxed{" * 3000 + "1" + "}" * 3000, "blanks in a box": r"\boxed" + " " * 10**5,
    "dollars": "$ " * 50_000, "numbers": "1,000 " * 20_000, "answers": "the answer is " * 20_000,
    "tags": "<answer>" * 20_000, "blanks after answer": "answer" + " " * 200,
    "stars after answer": "answer" + "*" * 3000, "lines": "\n" * 10**5, "blank lines": " \n" * 10**5,
    "brackets": "answer is" + " (" * 2000, "hashes": "####" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("choice", [False, True])
def test_extracting_takes_no_time_whatever_the_text(name, choice):
    started = time.process_time()
    extract(RESPONSES[name], "evaluation", choice)
    assert time.process_time() - started < SECONDS


@FEW
@given(st.integers(20, 60))
def test_a_close_call_of_two_irrational_numbers_is_not_equal(n):
    """sqrt(n^2 + 1) and n + 1/(2n) differ by about 1/(8 n^3)."""
    different(rf"\sqrt{{{n * n + 1}}}", rf"{n}+\frac{{1}}{{{2 * n}}}")
    assert math.isclose(math.sqrt(n * n + 1), n + 1 / (2 * n), rel_tol=1e-6)
