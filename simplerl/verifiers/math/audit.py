"""Wrong verdicts that a looser comparison would call right: what a person looks at to judge the verifier.

No rule here decides a verdict. Most findings are wrong answers indeed; the others are false negatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal, get_args

from simplerl.verifiers.math.compare import compare
from simplerl.verifiers.math.exact import OutOfRange, Undefined
from simplerl.verifiers.math.extract import TAIL, box_at, cut, last_value
from simplerl.verifiers.math.normalise import canonical, surface
from simplerl.verifiers.math.numeric import evaluate
from simplerl.verifiers.math.parse import Unreadable, parse
from simplerl.verifiers.math.pool import Outcome
from simplerl.verifiers.math.relations import exact_part, labelled
from simplerl.verifiers.math.tree import Collection, Node, Quantity, Relation
from simplerl.verifiers.math.vocabulary import CONSTANTS, FUNCTIONS

Kind = Literal["edit", "letter-case", "numeric", "other box", "math-verify"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Symbolic = Callable[[str, str], "Future[Outcome]"]

SAME, CLOSE = 1e-9, 1e-2
RULES = (
    ("equal value", 1.0, SAME),
    ("within 1 %", 1.0, CLOSE),
    ("factor 100", 100.0, CLOSE),
    ("factor 1/100", 0.01, CLOSE),
)
"""Names, factors between the two numbers, and what they may differ by as a share."""

MAX_BOXES = 64
MAX_CHARS = 1000

_TEXT = re.compile(r"\\(?:text[a-z]*|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_NAME = re.compile(r"^(?:[A-Za-z](?:_\{?\w+\}?)?(?:\([^()=]*\))?|\\[a-z]+)(?:=|:|\\in(?![a-z])|\\approx(?![a-z]))")
_DECORATION = re.compile(
    r"\^\{?\\circ\}?|\\(?:degree|quad|qquad|mathbb|displaystyle)(?![a-z])|\\[%$,;:! ]|[$%\s~]|[.;]$"
)
_BRACKETS = re.compile(r"\\[{}]|\\[lr]brace(?![a-z])|[()\[\]]|(?<![A-Za-z}])\{([^{}]*)\}(?!\{)")
_ZEROS = re.compile(r"(\d\.\d*?)0+(?!\d)")
_WORDS_BEHIND = re.compile(r"(?<=[\d})])\s*((?:[A-Za-z]{2,}\.?\s*)+)(?:\^\{?\d\}?)?$")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_LITERAL = re.compile(r"[-+]?\d*(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Judged:
    """What was called wrong: the answer that was extracted, None where there was none, and what it should have been."""

    id: str | int
    extracted: str | None
    gold: str
    response: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One wrong verdict that is worth a look, and the rule that says so."""

    id: str | int
    kind: Kind
    rule: str
    extracted: str | None
    gold: str


Rule = tuple[Kind, str]


def audit(wrong: Iterable[Judged], symbolic: Symbolic | None = None) -> list[Finding]:
    """The first rule, in the order of `KINDS`, under which each answer would be right; those without are left out.

    `symbolic` decides pairs that no other rule finds, each once: `SymbolicPool.submit`, for example.
    """
    judged = list(wrong)
    rules = [_rule(each) for each in judged]
    if symbolic is not None:
        left = (each for each, rule in zip(judged, rules, strict=True) if rule is None)
        equal = _equal_symbolically(left, symbolic)
        rules = [rule or equal.get((each.extracted, each.gold)) for each, rule in zip(judged, rules, strict=True)]
    found = ((each, rule) for each, rule in zip(judged, rules, strict=True) if rule)
    return [Finding(each.id, *rule, each.extracted, each.gold) for each, rule in found]


def _rule(each: Judged) -> Rule | None:
    same = loosely_equal(each.extracted, each.gold) if each.extracted else None
    return same or _elsewhere(each.response, each.extracted, each.gold)


@lru_cache(maxsize=8192)
def loosely_equal(answer: str, gold: str) -> Rule | None:
    """What makes two different answers look the same: editing, the case of letters, or the size of numbers."""
    if max(len(answer), len(gold)) > MAX_CHARS:
        return None
    a, b = edited(answer), edited(gold)
    if a & b:
        return "edit", "decoration dropped"
    if {each.casefold() for each in a} & {each.casefold() for each in b}:
        return "letter-case", "upper and lower case"
    found = _numerically(answer, gold)
    return ("numeric", found) if found else None


def _equal_symbolically(left: Iterable[Judged], symbolic: Symbolic) -> dict[tuple[str | None, str], Rule]:
    """Numbers have been compared already; asking about them would take most of the time."""
    pairs = {(each.extracted, each.gold) for each in left if each.extracted}
    asked = {(a, b): symbolic(a or "", b) for a, b in sorted(pairs) if not (numbers(a) and numbers(b))}
    return {pair: ("math-verify", "equal") for pair, future in asked.items() if future.result().status == "equal"}


# --- editing --------------------------------------------------------------------------------------------------------


def edited(text: str) -> set[str]:
    """What is left without spaces, brackets, units, signs of currency, decoration, trailing zeros and `x =`.

    Words in `\\text{}` may be the answer or its unit, so there is a version with them and one without.
    """
    plain = surface(text)
    versions = (_TEXT.sub(r"\1", plain), _TEXT.sub(" ", plain))
    return {stripped for version in versions if (stripped := _stripped(version))}


def _stripped(text: str) -> str:
    text = _ZEROS.sub(r"\1", _DECORATION.sub("", _NAME.sub("", _without_words(canonical(text)))))
    text = _BRACKETS.sub(r"\1", text)
    return re.sub(r"\.(?!\d)", "", text)


def _without_words(text: str) -> str:
    """Without the words behind the last number, if none of them is mathematics."""
    match = _WORDS_BEHIND.search(text)
    if match is None or {*match[1].replace(".", "").split()} & (FUNCTIONS | CONSTANTS.keys()):
        return text
    return text[: match.start()]


# --- numbers --------------------------------------------------------------------------------------------------------


def _numerically(answer: str, gold: str) -> str | None:
    """How all numbers of two answers are alike."""
    first, second = numbers(answer), numbers(gold)
    if not first or len(first) != len(second):
        return None
    pairs = list(zip(first, second, strict=True))
    # Two whole numbers that differ are different, however large they are.
    near = SAME if all(_whole(x) and _whole(y) for x, y in pairs) else CLOSE
    for rule, factor, share in RULES:
        if all(abs(x - factor * y) <= min(near, share) * factor * abs(y) for x, y in pairs):
            return rule
    if _rounds(answer, first, second) or _rounds(gold, second, first):
        return "rounded"
    return None


@lru_cache(maxsize=8192)
def numbers(text: str) -> tuple[complex, ...]:
    """The values of an answer: one, or those of a list, a tuple or a set. Empty where it holds anything else."""
    try:
        node = _bare(parse(surface(text)))
        items = node.items if isinstance(node, Collection) and node.kind in ("list", "tuple", "set") else (node,)
        return tuple(evaluate(_bare(item), {}).value for item in items)
    except (Unreadable, Undefined, OutOfRange, RecursionError):
        return ()


def _bare(node: Node) -> Node:
    """Without a name before it and a unit behind it."""
    if isinstance(node, Relation):
        node = labelled(exact_part(node)) or node
    return node.value if isinstance(node, Quantity) else node


def _whole(value: complex) -> bool:
    return value.imag == 0 and value.real == round(value.real)


def _rounds(text: str, value: Sequence[complex], other: Sequence[complex]) -> bool:
    """Whether a decimal, as written, is the other number rounded; a whole number below 10 says too little for that."""
    match = _LITERAL.fullmatch(canonical(surface(text)))
    if match is None or len(other) != 1 or (_whole(value[0]) and (abs(value[0]) < 10 or _whole(other[0]))):
        return False
    return abs(value[0] - other[0]) <= 0.5 * 10.0 ** -len(match[1] or "") * (1 + SAME)


# --- elsewhere in the response --------------------------------------------------------------------------------------


def _elsewhere(response: str, extracted: str | None, gold: str) -> Rule | None:
    """The gold answer in another box than the one that counted, or, without a box, as the last value."""
    text = cut(response)
    boxes = (box_at(text, match.start()) for match in islice(_BOX.finditer(text), MAX_BOXES))
    contents = {box.content for box in boxes if box and box.content}
    if any(_equal(content, gold) for content in contents - {extracted}):
        return "other box", "another box"
    last = last_value(text[-TAIL:]) if extracted is None and not contents else None
    return ("other box", "no box, last value") if last and _equal(last, gold) else None


@lru_cache(maxsize=8192)
def _equal(answer: str, gold: str) -> bool:
    return compare(answer, gold).equal is True
