"""What an answer says: numbers, expressions, collections, relations, words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """A literal. `decimal` when it was written with a decimal point: such numbers are compared with a tolerance."""

    value: Fraction
    decimal: bool = False


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base, `204_5`."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable or a named constant, with its subscript and primes: `x`, `x_1`, `pi`, `f'`."""

    name: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is not an expression, in lower case with single spaces."""

    text: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation: add, mul, div, neg, pow, pm, sqrt, sin, ..., `fn:f` for an unknown function f."""

    op: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit or other words behind it."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Several values. `kind` is list (bare, with commas), tuple (in brackets: a point or an interval), set, union,
    ratio (`a:b`) or matrix (its items are lists, the rows). `brackets` are the two of a tuple."""

    kind: str
    items: tuple[Node, ...]
    brackets: str = ""
    either: bool = False
    """Whether a list's items were joined by "or"."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain `a < b <= c`: one operator fewer than terms. Operators: = != < <= > >= ~ (approximately) in."""

    ops: tuple[str, ...]
    terms: tuple[Node, ...]


Node = Number | Based | Symbol | Words | Apply | Quantity | Collection | Relation


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Apply(_, args):
            return args
        case Collection(_, items):
            return items
        case Relation(_, terms):
            return terms
        case Quantity(value, _):
            return (value,)
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(children(node))


def is_decimal(node: Node) -> bool:
    """Whether a decimal stands anywhere in it."""
    return any(isinstance(each, Number) and each.decimal for each in walk(node))
