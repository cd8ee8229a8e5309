"""The symbolic comparer: what it takes for equal, what it must not, and that it evaluates nothing.

It replaces parts of sympy where it is imported, so it runs in workers and in scripts here, never in the tests' process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from simplerl.verifiers.math.pool import SymbolicPool

pytestmark = pytest.mark.unit

EQUAL = [
    (r"\frac{\sqrt{3}}{3} \approx 0.577", r"\frac{1}{\sqrt{3}}"),
    (r"\sum_{n=1}^{\infty} \frac{1}{n^{2}}", r"\frac{\pi^2}{6}"),
    (r"\sum\limits_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
    (r"\int_0^1 x^2 \, dx", r"\frac13"),
    (r"\lim_{n \to \infty} \left(1+\frac{1}{n}\right)^{n}", "e"),
    (r"\prod_{k=1}^{5} k", "120"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}", r"\begin{pmatrix}3\\7\end{pmatrix}"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"),
    (r"\mathbb{R} \setminus \{0\}", r"(-\infty,0) \cup (0,\infty)"),
    (r"x \neq 0", r"(-\infty,0) \cup (0,\infty)"),
    (r"-793 < a < 10", "(-793, 10)"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"2 \pm \sqrt{3}", r"\{2-\sqrt3, 2+\sqrt3\}"),
    ("(1,4.5)", r"(1,\frac{9}{2})"),
    ("-x > -1", "x < 1"),
    ("34x+45y-20z+100=0", "-34x-45y+20z-100=0"),
    ("f(x)=x+1", "f(x)-x-1=0"),
    (r"\frac{2x+2}{2}-1", "x"),
    (r"\sin^2 x+\cos^2 x", "1"),
    ("sin(x)**2 + cos(x)**2", "1"),
    ("-1 + exp(16)", "e^{16} - 1"),
    ("sqrt(x**2 (y+1)**2)", "|x| |y+1|"),
    (r"\frac{pi}{4}", "arctan(1)"),
    (r"\log_2 8", "3"),
    (r"e^{i\pi}", "-1"),
    ("(1+i)^2", "2i"),
    ("14.0 + -1.0i", "14 - i"),
    ("0.0833333333333333", r"\frac{1}{12}"),
    ("62.5%", r"\frac{5}{8}"),
    ("x = 5+5+1 = 11", "11"),
    ("2 + 2 = 4", "4"),
    (r"f(x) = 1", "1"),
    (r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
]

DIFFERENT = [
    ("x+1", "x+2n+1"),
    ("1", r"1\sqrt{19}"),
    (r"1+\frac1e", r"1-\frac1e"),
    ("[0,1)", "[0,9)"),
    ("[0,9)", "(0,9)"),
    ("1", "2x + z = 1"),
    ("0", "a + 3z = 0"),
    ("0", "x + y = 0"),
    ("5", "4 = 5"),
    ("4", "a=1, b=2, c=3, d=4"),
    ("4", r"4 \neq 4"),
    ("4", r"4 \text{ or } 5"),
    ("4", r"\mathbb{R}"),
    # sympy takes both for the set of 1, both right sides for 0, and no solution for the same solutions.
    ("1, 1, 1", "1"),
    (r"\frac{R-r}{R+r}", "0"),
    ("0.0000003", "0"),
    ("x^2+1=0", "x^2+2=0"),
    ("sqrt(x**2)", "x"),
    ("2t", "2"),
    (r"\int 2x \, dx", "x^2 + C"),
]

UNPARSED = [
    ("", ""),
    ("", "42"),
    ("1+", "1"),
    ("0/0", "0"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    ("f'(x)", "f(x)"),
    ("2^T", "2"),
    ("BCA", "ABC"),
    (r"5\phantom{4}", "5"),
    (r"0.\overline{3}", "0"),
    (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n"),
    (r"\input{x}", "x"),
    (r"\write18{ls}", "1"),
    ("x_{__class__}", "1"),
    ("\ud800", "1"),
]

AUDIT = r"""
import sys

from simplerl.verifiers.math.symbolic import equal, warm_up

list(warm_up())
bad = []
RUNS_PROGRAMS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect")

def note(event, args):
    if event in RUNS_PROGRAMS or (event == "compile" and b"canary" in bytes(args[0] or b"")):
        bad.append((event, args))

sys.addaudithook(note)
for text in (
    "__import__('os').system('canary')", "().__class__.canary", r"\operatorname{canary}(1)", r"\text{canary}(1)",
    r"\text{canary(1)}+1", r"x_{canary(1)}+1", r"\sum_{n=1}^{\infty}\frac{\text{canary}(n)}{n^2}",
    r"\sum_{n_{canary}=1}^{\infty} \frac{1}{n_{canary}^2}", r"\gcd(\text{canary}, 12.5)", r"\variable{canary}",
):
    equal(text, "1"), equal("1", text)

import sympy

for text in ("canary", "1+1", "canary()", "(1).real"):
    for evaluate in (sympy.sympify, sympy.parse_expr, sympy.Number):
        try:
            evaluate(text)
        except (NotImplementedError, ValueError):
            continue
        bad.append((evaluate, text))
try:
    sympy.lambdify(sympy.Symbol("x"), sympy.Function("canary")(1))
    bad.append("lambdify")
except NotImplementedError:
    pass
print(bad)
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[SymbolicPool]:
    pool = SymbolicPool(cpu_seconds=10, wall_seconds=60)
    yield pool
    pool.close()


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_in_either_order(pool, answer, gold):
    outcomes = [pool.submit(answer, gold), pool.submit(gold, answer)]
    assert [each.result().status for each in outcomes] == ["equal", "equal"]


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different_in_either_order(pool, answer, gold):
    outcomes = [pool.submit(answer, gold), pool.submit(gold, answer)]
    assert [each.result().status for each in outcomes] == ["different", "different"]


@pytest.mark.parametrize(("answer", "gold"), UNPARSED)
def test_what_cannot_be_read_equals_nothing(pool, answer, gold):
    assert pool.submit(answer, gold).result().status == "unparsed"
    assert pool.submit(answer, answer).result().status == "unparsed"


def test_nothing_of_an_answer_is_evaluated():
    done = subprocess.run([sys.executable, "-c", AUDIT], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
