"""Whether two bare answers are equal: the exact path, without sympy, in microseconds and bounded in length.

It decides almost all real cases. What only the symbolic path can read it leaves open (None).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from simplerl.verifiers.math import relations, units
from simplerl.verifiers.math.literals import is_number, unevaluated
from simplerl.verifiers.math.matrices import evaluated
from simplerl.verifiers.math.normalise import MAX_CHARS, canonical, surface
from simplerl.verifiers.math.numeric import variables
from simplerl.verifiers.math.parse import parse
from simplerl.verifiers.math.reader import Beyond, Unreadable
from simplerl.verifiers.math.scalars import same_value
from simplerl.verifiers.math.tokens import Commas
from simplerl.verifiers.math.tree import Apply, Collection, Node, Quantity, Relation, Symbol, Words, walk
from simplerl.verifiers.math.vocabulary import PHRASES

MAX_ITEMS = 64
CHOICE = re.compile(r"[A-J]")
_CHOSEN = re.compile(
    r"[\s*]*(?:(?i:option|choice|answer)[\s:]*)?"
    r"(?:\(([A-J])\)(?!\s*(?:and\b|or\b|[,&(/])).*|([A-J])(?:[:.)](?!\s*(?:and\b|or\b|[,&/])).*|\s+-\s.*|\s+[A-Z][a-z]+.*|\s*))",
    re.DOTALL,
)
_TIME = re.compile(r"\s*\d{1,2}:\d\d(?![\d:]).*", re.DOTALL)
_AMBIGUOUS = re.compile(r"\d\s*,\s*\d{3}(?!\d)")
_DECIMAL_COMMA = re.compile(r"\s*-?\s*(?:0,\d\d+|[1-9]\d*,\d\d|[1-9]\d{3,},\d+)\s*")
_COMMANDS = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|mathbf|quad|left|right)(?![a-zA-Z])|[{}$]|\\[ ,;!]|\\(?=\s)")
_MATHEMATICS = re.compile(r"[\\^_=+/<>|()\[\]{}!-]")
_IN_BRACKETS = re.compile(r"[(\[][^()\[\]]*\d,\d{3}(?!\d)[^()\[\]]*[)\]]")
_DROPPED = re.compile(r"[\s.{}$]|\\text|\\mathrm|\\,")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_PUNCTUATION = re.compile(r"[\s.,;:!?'\"()\[\]*`~-]+")


ROMAN = re.compile(r"[IVX]{2,}")
SHORT = {
    "no",
    "on",
    "is",
    "it",
    "in",
    "up",
    "so",
    "to",
    "of",
    "or",
    "at",
    "by",
    "if",
    "as",
    "we",
    "he",
    "us",
    "si",
    "ti",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`equal` is None when only the symbolic path can tell; `method` names what decided."""

    equal: bool | None
    method: str


@lru_cache(maxsize=8192)
def prepared(text: str) -> tuple[str, str]:
    """Surface and canonical form."""
    plain = surface(text)
    plain = PHRASES.get(plain_words(plain), plain)
    return plain, canonical(plain)


def compare(answer: str, gold: str, finished: bool = False) -> Comparison:
    """Two bare answers, in any notation. `finished`: where the gold is a number, so must be the answer."""
    (a, a_canonical), (b, b_canonical) = prepared(answer), prepared(gold)
    if not a_canonical or not b_canonical:
        return Comparison(False, "empty")
    if a_canonical == b_canonical:
        return Comparison(True, "string")
    for one, other in ((a, b), (b, a)):
        if (letter := CHOICE.fullmatch(bare_letter(one))) and (found := chosen(other)) is not None:
            return Comparison(found == letter[0], "choice")
    if max(len(a), len(b)) > MAX_CHARS:
        return Comparison(False, "too long")
    if as_word(a) or as_word(b):
        return Comparison(same_text(a, b), "text")
    if _TIME.fullmatch(a) and _TIME.fullmatch(b):
        return Comparison(_DROPPED.sub("", a).lower() == _DROPPED.sub("", b).lower(), "time")
    return by_reading(a, b, finished)


def asks_for_letter(gold: str) -> bool:
    """Whether the gold answer is a choice."""
    return CHOICE.fullmatch(bare_letter(gold)) is not None


def bare_letter(text: str) -> str:
    return "" if set(text) & set("'-") else _PUNCTUATION.sub("", _COMMANDS.sub("", text))


def chosen(text: str) -> str | None:
    """The letter of a multiple-choice answer: `C`, `(C)`, `C: because`, `\\text{C}`."""
    match = _CHOSEN.fullmatch(_COMMANDS.sub("", text).strip())
    return match[1] or match[2] if match else None


def by_reading(a: str, b: str, finished: bool) -> Comparison:
    """Both parsed and compared, under each reading of their commas that makes sense."""
    undecided = False
    for commas in readings(a, b):
        try:
            gold = parse(b, commas)
            found = compare_trees(parse(a, commas), gold, finished)
        except Beyond:
            undecided = True
            continue
        except (Unreadable, RecursionError):
            continue
        if found.equal or found.method == "unevaluated":
            return found
        undecided |= found.equal is None
    if undecided and finished and states_number(b):
        return Comparison(False, "unevaluated")
    if undecided:
        return Comparison(None, "undecided")
    return Comparison(same_text(a, b), "text" if _WORDS.search(a) else "value")


def compare_trees(answer: Node, gold: Node, finished: bool) -> Comparison:
    found = same(answer, gold)
    if found and unevaluated(answer, gold, finished):
        return Comparison(False, "unevaluated")
    return Comparison(found, "value")


def states_number(text: str) -> bool:
    try:
        return is_number(parse(text))
    except Unreadable:
        return False


def readings(a: str, b: str) -> Iterable[Commas]:
    """In brackets a comma with no blank behind it separates; bare, it may mark thousands or, at last, decimals."""
    separates = any(_IN_BRACKETS.search(text) for text in (a, b))
    if not separates or ", " in a or ", " in b:
        yield "thousands"
    if separates or _AMBIGUOUS.search(a) or _AMBIGUOUS.search(b):
        yield "list"
    if any(_DECIMAL_COMMA.fullmatch(one) and "," not in other for one, other in ((a, b), (b, a))):
        yield "decimal"


# --- text -----------------------------------------------------------------------------------------------------------


def plain_words(text: str) -> str:
    return _PUNCTUATION.sub(" ", _COMMANDS.sub(" ", text)).strip().lower()


def as_word(text: str) -> bool:
    """One word of letters, which is not a product of variables."""
    word = plain_words(text)
    if ROMAN.fullmatch(canonical(text)):
        return True
    return (len(word) > 2 or word in SHORT) and word.isalpha() and not relations.is_name(word)


def same_text(a: str, b: str) -> bool:
    """The same words, whatever their case and punctuation. What may be mathematics must be the same to the sign."""
    kept = [" ".join(_COMMANDS.sub(" ", text).split()) for text in (a, b)]
    if any(_MATHEMATICS.search(text) for text in kept):
        return kept[0] == kept[1]
    x, y = (text.lower().strip(" .,;:?") for text in kept)
    if any(character.isdigit() for character in x + y):
        return _WORDS.search(x) is not None and x == y
    return _WORDS.search(x) is not None and plain_words(x) == plain_words(y)


# --- trees ----------------------------------------------------------------------------------------------------------


def same(answer: Node, gold: Node) -> bool | None:
    """Whether two parsed answers say the same; None when that stays open."""
    if answer == gold:
        return True
    a, b = (relations.carved(evaluated(expanded(each))) for each in (answer, gold))
    if units.has_unit(a) or units.has_unit(b):
        return units.same_quantity(a, b, same)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return same_relations(a, b)
    if isinstance(a, Relation) or isinstance(b, Relation):
        return same_as_relation(a, b)
    if isinstance(a, Collection) and isinstance(b, Collection):
        return same_collections(a, b)
    if isinstance(a, Collection) or isinstance(b, Collection):
        return same_as_collection(a, b)
    return same_value(a, b)


def expanded(node: Node) -> Node:
    """With plus-minus written out: a list of two values."""
    match node:
        case Collection("list", items) if (solutions := relations.solutions(items)) is not None:
            return solutions
        case Collection(kind, items, brackets, either) if kind in ("list", "set"):
            flat: list[Node] = []
            for item in map(expanded, items):
                flat.extend(item.items if isinstance(item, Collection) and item.kind == "list" else [item])
            return Collection(kind, tuple(flat), brackets, either)
        case Relation(("=",), (left, right)) if _has_plus_minus(right):
            inner = expanded(right)
            assert isinstance(inner, Collection)
            return Collection("list", tuple(Relation(("=",), (left, each)) for each in inner.items))
        case Apply() | Quantity() if _has_plus_minus(node):
            return Collection("list", (_signed(node, 0), _signed(node, 1)))
    return node


def _has_plus_minus(node: Node) -> bool:
    return isinstance(node, (Apply, Quantity)) and any(isinstance(n, Apply) and n.op == "pm" for n in walk(node))


def _signed(node: Node, sign: int) -> Node:
    """One of the two values of an expression with plus-minus."""
    match node:
        case Quantity(value, unit):
            return Quantity(_signed(value, sign), unit)
        case Apply("pm", (*first, last)):
            value = _signed(last, sign)
            value = Apply("neg", (value,)) if sign else value
            return Apply("add", (_signed(first[0], sign), value)) if first else value
        case Apply(op, args):
            return Apply(op, tuple(_signed(arg, sign) for arg in args))
    return node


def same_relations(a: Relation, b: Relation) -> bool | None:
    a, b = relations.exact_part(a), relations.exact_part(b)
    x, y = relations.labelled(a), relations.labelled(b)
    if x is not None and y is not None and relations.label(a) == relations.label(b):
        return same(x, y)
    if relations.same_relation(a, b):
        return True
    p, q = relations.region(a), relations.region(b)
    if p is not None and q is not None and variables(*a.terms) == variables(*b.terms):
        return same(p, q)
    return False


def same_as_relation(a: Node, b: Node) -> bool | None:
    """`x = 5` against 5, `x < 3` against an interval."""
    relation, other = (a, b) if isinstance(a, Relation) else (b, a)
    assert isinstance(relation, Relation)
    found: bool | None = False
    for value in relations.values(relation):
        found = same(value, other) if relation is a else same(other, value)
        if found:
            return True
    interval = relations.region(relation)
    if interval is not None and isinstance(other, Collection) and other.kind in ("tuple", "union", "set"):
        return same(interval, other)
    return found


def same_collections(a: Collection, b: Collection) -> bool | None:
    kinds = {a.kind, b.kind}
    if a.kind == b.kind == "tuple":
        return same_tuples(a, b)
    if a.kind == b.kind == "matrix":
        return in_order(a.items, b.items)
    if a.kind == b.kind == "ratio":
        return in_order(a.items, b.items) or relations.proportional(a.items, b.items)
    p, q = relations.regions(a), relations.regions(b)
    if p is not None and q is not None and (p, q) != (a, b):
        return same(p, q)
    if "union" in kinds:
        return a.kind == b.kind and unordered(a.items, b.items)
    if kinds <= {"list", "set"}:
        return same_lists(a, b)
    if kinds == {"list", "tuple"}:
        return list_and_tuple(a, b)
    if kinds == {"tuple", "matrix"}:
        return in_order(flat(a), flat(b)) if 1 in _shape(a) + _shape(b) else False
    return False


def same_tuples(a: Collection, b: Collection) -> bool | None:
    """Points and intervals. The brackets of a pair say whether its ends belong to it; others are decoration."""
    if len(a.items) == 2 and a.brackets != b.brackets:
        return False
    return in_order(a.items, b.items)


def same_lists(a: Collection, b: Collection) -> bool | None:
    dotted = any(isinstance(item, Symbol) and item.name == "..." for item in (*a.items, *b.items))
    if dotted:
        return in_order(a.items, b.items)
    points = all(isinstance(item, Collection) for item in (*a.items, *b.items))
    if points or "set" in (a.kind, b.kind):
        return unordered(distinct(a.items), distinct(b.items))
    return unordered(a.items, b.items)


def list_and_tuple(a: Collection, b: Collection) -> bool | None:
    """`p = 5, q = 2` or `5, 2` against `(5, 2)`; `(x, y) = (1, 2) or (2, 1)` is a list of tuples."""
    bare, pair = (a, b) if a.kind == "list" else (b, a)
    if pair.brackets != "()":
        return False
    return in_order(bare.items, pair.items) if bare is a else in_order(pair.items, bare.items)


def same_as_collection(a: Node, b: Node) -> bool | None:
    """A set of one element is that element; `1:2` is one half."""
    several, other = (a, b) if isinstance(a, Collection) else (b, a)
    assert isinstance(several, Collection)
    if several.kind == "set" and len(several.items) == 1:
        return same(several.items[0], other) if several is a else same(other, several.items[0])
    if several.kind == "ratio" and len(several.items) == 2 and not isinstance(other, Words):
        return same_value(Apply("div", several.items), other)
    if several.kind == "matrix" and len(flat(several)) == 1:
        return same(flat(several)[0], other)
    return False


def flat(node: Collection) -> tuple[Node, ...]:
    return tuple(i for row in node.items for i in (row.items if isinstance(row, Collection) else (row,)))


def _shape(node: Collection) -> tuple[int, ...]:
    if node.kind != "matrix":
        return ()
    return len(node.items), max(len(row.items) for row in node.items if isinstance(row, Collection))


def in_order(a: Sequence[Node], b: Sequence[Node]) -> bool | None:
    if len(a) != len(b):
        return False
    found = [same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in found else None if None in found else True


def unordered(a: Sequence[Node], b: Sequence[Node]) -> bool | None:
    """The same things in any order, each as often."""
    if len(a) != len(b):
        return False
    if in_order(a, b):
        return True
    if len(a) > MAX_ITEMS:
        return False
    left = list(b)
    for item in a:
        match = next((i for i, other in enumerate(left) if same(item, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def distinct(items: Sequence[Node]) -> list[Node]:
    """Without repetitions; long lists are left as they are."""
    if len(items) > MAX_ITEMS:
        return list(items)
    kept: list[Node] = []
    for item in items:
        if not any(same(item, other) for other in kept):
            kept.append(item)
    return kept
