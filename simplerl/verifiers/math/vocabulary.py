"""The words an answer may use: functions, constants, relations, units."""

from __future__ import annotations

from fractions import Fraction

TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
FUNCTIONS = TRIGONOMETRIC | {
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg", "exp", "sqrt", "abs", "floor", "ceil",
    "max", "min", "gcd", "lcm", "cis", "sgn",
}  # fmt: skip
SYNONYMS = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "arccot": "arccot", "ceiling": "ceil", "cosec": "csc"}
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar", "nabla", "partial", "aleph",
    "Re", "Im", "triangle", "square", "Box",
}  # fmt: skip
CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "Infinity": "oo", "inf": "oo", "oo": "oo"}
RELATIONS = {
    "=": "=", "==": "=", ":=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=",
    "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\approx": "~", "\\simeq": "~", "\\in": "in",
    "\\equiv": "==", "\\cong": "~=", "\\to": "->", "\\rightarrow": "->", "->": "->", "\\mapsto": "->",
    "\\parallel": "||", "\\perp": "_|_", "\\sim": "~~", "\\propto": "oc", "\\subset": "sub", "\\subseteq": "sub=",
}  # fmt: skip
# Known to LaTeX and to the symbolic path, not to this parser.
BEYOND = {
    "\\sum", "\\prod", "\\int", "\\iint", "\\oint", "\\lim", "\\det", "\\cases", "\\bmod", "\\mod",
}  # fmt: skip
WRAPPERS = {
    "\\mathrm", "\\mathbf", "\\mathit", "\\mathsf", "\\mathcal", "\\boldsymbol", "\\bm", "\\operatorname", "\\vec",
    "\\overrightarrow", "\\hat", "\\bar", "\\widehat", "\\tilde", "\\boxed", "\\fbox", "\\mathop", "\\ensuremath",
    "\\underline", "\\overline", "\\overset", "\\mathscr", "\\mathfrak", "\\displaylines", "\\stackrel", "\\color",
}  # fmt: skip
TEXTS = {
    "\\text", "\\textbf", "\\textit", "\\textrm", "\\textnormal", "\\mbox", "\\textsf", "\\texttt", "\\hbox", "\\emph",
    "\\textup", "\\textsc",
}  # fmt: skip
FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
BINOMIALS = {"\\binom", "\\dbinom", "\\tbinom"}
MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
# Behind a number they make another number of it, so they are no unit.
NO_UNITS = {
    "or", "more", "less", "at", "squared", "cubed", "factorial", "half", "halves", "third", "thirds", "fourths",
    "quarter", "quarters", "fifths", "sixths", "eighths", "tenth", "tenths", "hundredth", "hundredths", "thousandths",
    "below", "above", "under", "over", "plus", "minus", "times", "negative", "to", "through", "mod", "modulo", "base",
    "is", "not", "does", "wrong", "incorrect", "and", "zero",
}  # fmt: skip
# phrases and the symbol of the same meaning
PHRASES = {
    "all real numbers": "\\mathbb{R}", "all reals": "\\mathbb{R}", "all real x": "\\mathbb{R}",
    "the set of all real numbers": "\\mathbb{R}", "any real number": "\\mathbb{R}", "empty set": "\\emptyset",
    "the empty set": "\\emptyset", "no solution": "\\emptyset", "no solutions": "\\emptyset",
    "there is no solution": "\\emptyset", "there are no solutions": "\\emptyset", "no real solution": "\\emptyset",
    "no real solutions": "\\emptyset", "does not exist": "undefined", "dne": "undefined", "infinity": "\\infty",
    "diverges": "divergent", "infinitely many solutions": "infinitely many", "converges": "convergent",
}  # fmt: skip
SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "hundreds": 100, "thousands": 1000, "millions": 10**6, "billions": 10**9,
}  # fmt: skip
PERCENT = {"percent", "pct", "percents", "per cent"}

_UNITS: dict[str, dict[str, tuple[int, int] | int]] = {
    "length": {
        "mm millimeter millimeters millimetre millimetres": (1, 1000),
        "cm centimeter centimeters centimetre centimetres": (1, 100),
        "m meter meters metre metres": 1, "km kilometer kilometers kilometre kilometres": 1000,
        "in inch inches": (254, 10000), "ft foot feet": (3048, 10000), "yd yard yards": (9144, 10000),
        "mi mile miles": (1609344, 1000),
    },
    "mass": {
        "mg milligram milligrams": (1, 10**6), "g gram grams": (1, 1000), "kg kilogram kilograms": 1,
        "oz ounce ounces": (28349523125, 10**12), "lb lbs pound pounds": (45359237, 10**8), "ton tons": 0,
    },
    "time": {
        "s sec secs second seconds": 1, "min mins minute minutes": 60, "h hr hrs hour hours": 3600, "day days": 86400,
        "week weeks": 604800, "month months": 0, "year years": 0,
    },
    "money": {"dollar dollars usd": 1, "cent cents": (1, 100)},
    "volume": {"ml milliliter milliliters": (1, 1000), "l liter liters litre litres": 1, "gal gallon gallons": 0},
    "angle": {"deg degree degrees": 1, "rad radian radians": 0},
}  # fmt: skip


def _units() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for dimension, names in _UNITS.items():
        for spellings, factor in names.items():
            # A factor of 0: known, and only comparable with itself.
            kind = dimension if factor else spellings.split()[0]
            size = Fraction(*factor) if isinstance(factor, tuple) else Fraction(factor or 1)
            table |= dict.fromkeys(spellings.split(), (kind, size))
    return table


COMPOUND = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmh": ("km", "h"), "fps": ("ft", "s")}
UNITS = _units()
"""A unit's dimension and its size in the dimension's first unit."""

# Without \text around it, a single letter behind a number is a variable.
BARE_UNITS = {name for name in UNITS if len(name) > 1}
