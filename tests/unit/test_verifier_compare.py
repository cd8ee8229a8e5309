"""The exact path: every stated rule, with the cases that other graders get wrong."""

from __future__ import annotations

import pytest

from simplerl.verifiers.math.compare import Comparison, compare

pytestmark = pytest.mark.unit

EQUAL = [
    # notation
    (r"\dfrac{1}{2}", r"\frac12"), (r"\frac 1 2", "1/2"), (r"\left( 3,\ \frac{\pi}{2} \right)", r"(3,\frac\pi2)"),
    ("1 000", "1000"), ("1,000", "1000"), (r"10{,}000", "10000"), (r"10,\!000", "10000"), (r"11,\! 111", "11111"),
    ("\u22125", "-5"), ("x\u00b2", "x^2"), ("\uff14\uff12", "42"), ("4\u200b2", "42"),
    (r"\\frac{1}{2}", r"\frac{1}{2}"), ("rho", "\u03c1"), ("infty", "Infinity"), (r"5\phantom{4}", "5"),
    # numbers
    ("0.5", r"\frac{1}{2}"), (".5", "0.5"), ("4.000", "4"), ("0.3333", "1/3"), ("007", "7"),
    (r"0.1\overline{6}", "1/6"), ("1,22", "1.22"), ("1000,99", "1000.99"), ("0,111", "0.111"),
    (r"1\frac{1}{2}", "3/2"), ("1 1/4", "5/4"), ("5 million", "5,000,000"), ("4", "12/3"),
    (r"3\times10^{8}", "300000000"), ("1" * 200 + "/" + "3" * 200, r"\frac{1}{3}"),
    # percent, money, units, degrees
    (r"10\%", "0.1"), (r"10\%", "10"), ("28 percent", r"28\%"), (r"\$10", "10"), ("17 apples", "17"),
    ("1/2 cm", "1/2"), (r"15\mbox{ cm}^2", "15"), (r"5\text{ m}", r"500\text{ cm}"), (r"90^\circ", "90"),
    ("90 degrees", r"90^\circ"), (r"85.71\,\mathrm{~km}/\mathrm{h}", r"\frac{600}{7}"),
    # surds, constants, functions
    (r"2\sqrt3", r"\sqrt{12}"), (r"\frac{1}{\sqrt3}", r"\frac{\sqrt3}{3}"), (r"\sqrt{16}", "4"),
    ("pi/2", r"\frac\pi2"), (r"\sqrt[3]{-8}", "-2"), (r"\log_2 8", "3"), (r"\sin 30^\circ", "1/2"),
    (r"\sin^{-1}\frac12", r"\frac\pi6"), (r"\binom{5}{2}", "10"), ("5!", "120"), (r"C_n^3", r"\frac{n(n-1)(n-2)}{6}"),
    (r"|-3|", "3"), (r"\lfloor 2.5 \rfloor", "2"), ("-1 + exp(16)", "e^{16} - 1"), ("14.0 + -1.0i", "14 - i"),
    # expressions with variables
    ("(x+1)^2", "x^2+2x+1"), (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac27"), ("sin(x)**2 + cos(x)**2", "1"),
    (r"2\sin b\cos a", r"\sin(a+b)-\sin(a-b)"), ("x_1+x_2", "x_{2}+x_{1}"), ("exp(x)exp(y)", "e^{x+y}"),
    ("3ab", "3ba"),
    # equations and inequalities
    ("x = 5", "5"), ("5", "f(x) = 5"), ("x=5+5+1=7=11", "x = 11"), (r"10^3 = 1000", "1000"),
    (r"x=1/3\approx0.333", "1/3"), ("x<3", r"(-\infty,3)"), ("-x > -1", "x < 1"), ("-793<a<10", "(-793,10)"),
    (r"x\in[-2,7]", "[-2,7]"), ("3>x", "x<3"), (r"x<1\text{ or }x>2", r"(-\infty,1)\cup(2,\infty)"),
    (r"\{x \mid x \ge 2\}", r"[2,\infty)"), ("2x>6", "x>3"), ("-34x-45y+20z-100=0", "34x+45y-20z+100=0"),
    ("y=2x+3", "2x-y+3=0"), ("f(x)=x+1", "f(x)-x-1=0"), (r"x\ne3", "x != 3"), (r"\mathbb{R}", r"(-\infty,\infty)"),
    # collections
    ("1,-2", "-2, 1"), (r"6\text{ and }8", "6, 8"), (r"\{3,1,2\}", "1,2,3"),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}"), (r"\{1,1,2\}", r"\{2,1\}"), ("x=1,x=2", "1,2"),
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"), ("(0;0;1)", "(0,0,1)"),
    (r"(x, y) = (5, 8) \text{ and } (8, 5)", "(8, 5), (5, 8)"),
    (r"V_1:V_2=11:21", "11:21"), ("2:4", "1:2"), ("1:2", "1/2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}+\begin{pmatrix}3&4\end{pmatrix}", r"\begin{pmatrix}4&6\end{pmatrix}"),
    (r"[0,1)\cup\{2\}", r"\{2\} \cup [0,1)"), (r"\{3\}", "3"), (r"\{100,200\}", r"\{200,100\}"),
    # words and choices
    (r"\text{Evelyn}", "evelyn"), ("odd", r"\text{odd}"), (r"\text{(C)}", "C"), ("C: because of it", "C"),
    ("(B) 24", "B"), ("204_5", "204_{5}"), (r"\text{13}", "13"),
]  # fmt: skip

DIFFERENT = [
    ("", ""), ("", "4"), ("4", ""), ("5", "4"), ("5.001", "5"), ("0.333", "1/3"), ("2.23", "2.232"),
    ("0.067", "0.066793"), ("50", "0.5"), ("0.5", r"50"), ("1 1/4", "11/4"), ("4 10/3", "10"), ("0/0", "0"),
    ("1/0", "2/0"), ("True", "1"), (r"10^{-10^{10}}", "0"), (r"9^{9^{9^9}}", "4"), ((r"(10^9)!"), "4"), ("nan", "0"),
    ("4=5", "5"), (r"4\neq4", "4"), ("4 or 5", "4"), (r"4\text{ or }5", "4"), ("a=1,b=2,c=3,d=4", "4"),
    (r"\mathbb{R}", "4"), ("2x+z=1", "1"), ("a^2+b=0", "0"), ("x=5", "y=5"), ("abc=1, d=2", "1"), ("-x>-1", "x>1"),
    (r"x\le3", "x<3"), ("[0,1]", "(0,1)"), ("(1,2)", "(2,1)"), ("1,2", "1,2,3"), ("1,1,1", "1"),
    (r"[0,1)\cup[2,3]", "[0,1)"), (r"\sqrt{x^2}", "x"), ("1/(x-1)", "1/(1-x)"), ("sin(x)cos(x)", "sin(x)+cos(x)"),
    (r"355/113", r"\pi"), ("x+1", "x+2n+1"), (r"\lfloor\sqrt n\rfloor", r"\lfloor\sqrt{n-1}\rfloor"),
    ("f(x+y)", "f(x)+f(y)"), (r"\pi", "3"), ("e^x", "x^e"), (r"5\text{ cm}", r"5\text{ m}"),
    (r"5\text{ cm}", r"5\text{ kg}"), ("5 million", "5"), ("1:00", "12:00"), ("12:30", "1:30"), ("oddd", "odd"),
    ("dog", "god"), ("B", "C"), ("(B) 24", "C"), ("four", "4"), ("204_5", "204_6"), (r"\infty", r"-\infty"),
    (r"\forall x>0, f(x)=0", "f(x)=0"), (r"1,2,\ldots,n", r"1,3,\ldots,n"), ("1 + 2", "12"), ("1,234", "1.234"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer: str, gold: str) -> None:
    assert compare(answer, gold).equal is True
    assert compare(gold, answer).equal is True


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert compare(answer, gold).equal is False
    assert compare(gold, answer).equal is False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(r"\sum_{k=1}^{10} k", "55"), (r"\int_0^1 x\,dx", r"\frac12"), (r"\lim_{n\to\infty}(1+1/n)^n", "e")],
)
def test_mathematics_beyond_the_parser_is_left_to_the_symbolic_path(answer: str, gold: str) -> None:
    assert compare(answer, gold).equal is None


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("273+604-607", "270", False),
        (r"17\times23", "391", False),
        (r"\binom{40}{2}", "780", False),
        ("2^{10}", "1024", False),
        (r"\sqrt{16}", "4", False),
        ("10^{6}", "1000000", True),
        (r"\sum_{k=1}^{10} k", "55", False),
        ("273+604-607=270", "270", True),
        (r"1\frac12", "1.5", True),
        (r"3\times10^8", "300000000", True),
        (r"\frac{28}{8}", "3.5", True),
        ("n+n", "2n", True),
        ("2+3i", "3i+2", True),
    ],
)
def test_a_computation_left_undone_is_no_answer_in_training(answer: str, gold: str, equal: bool) -> None:
    """Paying for the question restated would teach a model not to compute."""
    assert compare(answer, gold, finished=True).equal is equal


def test_in_evaluation_a_little_may_be_left_undone() -> None:
    assert compare("3+2", "5").equal is True
    assert compare("+".join(["1"] * 7), "7").equal is True
    assert compare("+".join(["1"] * 8), "8") == Comparison(False, "unevaluated")


def test_the_tolerance_is_relative() -> None:
    assert compare("10001.0", "10000").equal is True
    assert compare("10001.1", "10000").equal is False
    assert compare("10001", "10000").equal is False  # both exact
    assert compare("0.00001", "0").equal is False


def test_a_long_product_of_matrices_is_not_written_out() -> None:
    """Its entries would have 6 ** 7 terms."""
    matrix = r"\begin{pmatrix}" + r"\\".join(["&".join("xxxxxx")] * 6) + r"\end{pmatrix}"
    assert compare(matrix * 7, "-" + matrix).equal is not True
    product = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}"
    assert compare(product, r"\begin{pmatrix}3\\7\end{pmatrix}").equal is True
