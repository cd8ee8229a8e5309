"""Sums and products of matrices, written out."""

from __future__ import annotations

from functools import reduce

from simplerl.verifiers.math.reader import Beyond
from simplerl.verifiers.math.tree import Apply, Collection, Node, walk

MAX_PRODUCTS = 2
Rows = list[tuple[Node, ...]]


def evaluated(node: Node) -> Node:
    """A matrix where the node is arithmetic with matrices; the node itself otherwise.

    Written out, a product of n matrices grows with the n-th power of their size: long ones raise `Beyond`.
    """
    if not isinstance(node, Apply) or not any(rows(each) for each in walk(node)):
        return node
    factors = sum(isinstance(each, Apply) and each.op in ("mul", "pow") for each in walk(node))
    if factors > MAX_PRODUCTS:
        raise Beyond(f"{factors} products")
    return _evaluated(node)


def _evaluated(node: Node) -> Node:
    if not isinstance(node, Apply) or node.op not in ("add", "neg", "mul"):
        return node
    args = [_evaluated(arg) for arg in node.args]
    match node.op, [rows(arg) for arg in args]:
        case "neg", [a] if a:
            return matrix([tuple(Apply("neg", (x,)) for x in row) for row in a])
        case "add", [a, b] if a and b and shape(a) == shape(b):
            return matrix([_each("add", x, y) for x, y in zip(a, b, strict=True)])
        case "mul", [a, b] if a and b and len(a[0]) == len(b):
            columns = list(zip(*b, strict=True))
            return matrix([tuple(_dot(row, column) for column in columns) for row in a])
        case "mul", [None, b] if b:
            return matrix([tuple(Apply("mul", (args[0], x)) for x in row) for row in b])
    return node


def rows(node: Node) -> Rows | None:
    if not isinstance(node, Collection) or node.kind != "matrix":
        return None
    found = [row.items for row in node.items if isinstance(row, Collection)]
    return found if found and len({len(row) for row in found}) == 1 else None


def shape(found: Rows) -> tuple[int, int]:
    return len(found), len(found[0])


def matrix(found: Rows) -> Collection:
    return Collection("matrix", tuple(Collection("list", row) for row in found))


def _each(op: str, a: tuple[Node, ...], b: tuple[Node, ...]) -> tuple[Node, ...]:
    return tuple(Apply(op, pair) for pair in zip(a, b, strict=True))


def _dot(row: tuple[Node, ...], column: tuple[Node, ...]) -> Node:
    return reduce(lambda total, term: Apply("add", (total, term)), _each("mul", row, column))
