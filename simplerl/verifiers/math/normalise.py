r"""One spelling for what is written in many ways: Unicode signs, LaTeX decoration, spaces.

Both sides of a comparison go through the same rules, before anything else, so every answer equals itself.
"""

from __future__ import annotations

import re
import unicodedata

SIGNS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-",
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u2217": "*", "\u00f7": "/", "\u2044": "/",
    "\u221a": r"\sqrt ", "\u221e": r"\infty ", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ",
    "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u2216": r"\setminus ",
    "\u00b0": r"^\circ ", "\u2032": "'", "\u2019": "'", "\u2018": "'", "\u2220": r"\angle ", "\u2026": r"\ldots ",
    "\uff0c": ",", "\u3001": ",", "\uff1b": ";", "\uff1a": ":", "\u3002": ".", "\u211d": r"\mathbb{R}",
    "\u20ac": "$", "\u00a3": "$", "\u20b9": "$", "\u00a5": "$", "\u00a2": "$",
    "\u2219": r"\cdot ", "\u2022": r"\cdot ", "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
    "\u221d": r"\propto ", "\u2211": r"\sum ", "\u222b": r"\int ", "\u220f": r"\prod ",
}  # fmt: skip
# fmt: off
GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "omicron", "pi", "rho", "varsigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]
CAPITALS = dict(zip("\u0393\u0394\u0398\u039b\u039e\u03a0\u03a3\u03a6\u03a8\u03a9", [
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega",
], strict=True))
# fmt: on
SUPERSCRIPTS = dict(
    zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f", "0123456789-n", strict=True)
)
SUBSCRIPTS = dict(zip("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789", strict=True))
FRACTIONS = {"\u00bd": (1, 2), "\u2153": (1, 3), "\u2154": (2, 3), "\u00bc": (1, 4), "\u00be": (3, 4)}

TABLE: dict[int, str] = {
    **{ord(sign): plain for sign, plain in SIGNS.items()},
    **{0x3B1 + i: f"\\{name} " for i, name in enumerate(GREEK)},
    **{ord(sign): rf"\frac{{{a}}}{{{b}}}" for sign, (a, b) in FRACTIONS.items()},
    **{ord(sign): f"\\{name} " for sign, name in CAPITALS.items()},
}  # fmt: skip

_SUPER = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_SUB = re.compile(f"[{''.join(SUBSCRIPTS)}]+")
_INVISIBLE = re.compile(r"\\(?:[hv]?phantom)\s*\{[^{}]*\}")
_KNOWN = (
    "frac|dfrac|tfrac|cfrac|sqrt|boxed|fbox|text|textbf|textit|mathrm|mathbf|mbox|pi|theta|alpha|beta|left|right|cdot|"
    "times|pm|infty|cup|cap|in|le|leq|ge|geq|ne|neq|begin|end|quad|qquad|circ|angle|log|ln|sin|cos|tan|ldots|dots"
)
_DOUBLED = re.compile(rf"\\\\(?=(?:{_KNOWN})(?![a-zA-Z]))")
_GLUED = re.compile(r"\\(q?quad)(?=[a-zA-Z])")
_ENVIRONMENT = re.compile(r"\\begin\s*\{")
_DECORATION = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|hfill|break|allowbreak|,|;|:|!)"
    r"(?![a-zA-Z])|\\(?=\s)|(?<!\\)\$|\\\(|\\\)|\\\[|\\\]|~"
)
_SIZED = re.compile(r"\\(left|right)\s*\.")
_BETWEEN = re.compile(r"(?<![0-9a-zA-Z])\s+|\s+(?![0-9a-zA-Z])")

MAX_CHARS = 1000
"""A longer answer is compared as text alone."""

# Spellings that mean something else, or nothing.
_SPELLINGS = (
    (re.compile(r"^(?:\*\*|[*`\"])(.*?)(?:\*\*|[*`\"])$", re.DOTALL), r"\1"),
    (re.compile(r"^\s*\\approx(?![a-zA-Z])"), ""),
    (re.compile(r"\+/-|\+-(?=\s*\d)"), r"\\pm "),
    (re.compile(r"([)\]])\s*U\s*(?=[(\[])"), r"\1 \\cup "),
    (re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\^?\{?\\(?:degree|degrees)(?![a-zA-Z])\}?"), r"^\\circ "),
    (re.compile(r"(\d\.\d*)(?:\\(?:dot|bar)\s*\{?(\d+)\}?|\((\d+)\))"), r"\1\\overline{\2\3}"),
    (re.compile(r"(\.\d*?)(\d)\2\2*(?:\.\.\.|\\l?dots)"), r"\1\\overline{\2}"),
    (re.compile(r"^\s*(?:USD|EUR|GBP|Rs\.?|INR)\s*(?=\d)|\\text\s*\{\s*\\?\$\s*\}"), ""),
    (re.compile(r"\\color\s*\{[a-z]*\}|\\textcolor\s*\{[a-z]*\}|\\checkmark(?![a-zA-Z])"), ""),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
)


def unicode_to_latex(text: str) -> str:
    """Signs as LaTeX commands, digits and letters of full width as plain ones, nothing invisible."""
    if text.isascii():
        return text.replace("\0", "")
    text = _SUPER.sub(lambda m: "^{" + "".join(SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _SUB.sub(lambda m: "_{" + "".join(SUBSCRIPTS[c] for c in m[0]) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(TABLE)).translate(TABLE)
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c in "\n\t\f")


def surface(text: str) -> str:
    r"""The text of an answer with one sign for each thing: no dollar signs, no `\phantom`, no doubled backslashes."""
    text = unicode_to_latex(text).strip()
    if "phantom" in text:
        text = _INVISIBLE.sub("", text)
    text = _GLUED.sub(r"\\\1 ", text)
    if "\\\\" in text and not _ENVIRONMENT.search(text.replace("\\\\begin", "")):
        text = _DOUBLED.sub(r"\\", text)
    if len(text) > MAX_CHARS:
        return text
    for pattern, meant in _SPELLINGS:
        text = pattern.sub(meant, text)
    return text


def canonical(text: str) -> str:
    """What is left when spelling no longer matters: equal strings are equal answers.

    Spaces stay between letters and digits, where they mean something (`1 1/4` is not `11/4`).
    """
    text = _DECORATION.sub(" ", _SIZED.sub(" ", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _BETWEEN.sub("", " ".join(text.split()))
    return text.rstrip(".")
