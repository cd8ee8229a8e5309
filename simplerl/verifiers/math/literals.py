r"""Whether an answer is a number, or a computation that was left undone.

In training, `\boxed{273+604-607}` against 270 restates the question: paying for it teaches a model not to compute.
"""

from __future__ import annotations

from simplerl.verifiers.math.tree import Apply, Node, Number, Quantity, Relation, Symbol, children

MAX_WORK = 6
"""Operations that an answer may leave undone in evaluation, where the gold is a number; in training it is none."""
_NOTATION = {"neg", "div", "mixed", "percent", "degree"}


def is_number(node: Node) -> bool:
    """An integer, a decimal, a quotient of them, a percentage, a mixed number, with or without a unit."""
    match node:
        case Number():
            return True
        case Quantity(value, _) | Apply("neg" | "percent" | "degree", (value,)):
            return is_number(value)
        case Apply("div" | "mixed", (a, b)):
            return is_number(a) and is_number(b)
        case Relation(ops, terms) if ops and set(ops) <= {"=", "~"}:
            return isinstance(terms[0], Symbol) and is_number(terms[-1])
    return False


def work(node: Node) -> int:
    """How many operations are left to do; scientific notation is a number, and of a chain only the end counts."""
    match node:
        case Relation(_, terms):
            return work(terms[-1])
        case Apply("mul", (value, Apply("pow", (Number(base), _)))) if base == 10 and is_number(value):
            return 0
        case Apply("pow", (Number(base), exponent)) if base == 10 and is_number(exponent):
            return 0
    own = isinstance(node, Apply) and node.op not in _NOTATION
    return own + sum(work(child) for child in children(node))


def unevaluated(answer: Node, gold: Node, finished: bool) -> bool:
    """A computation in place of a number. `finished`: as in training."""
    return is_number(gold) and work(answer) > (0 if finished else MAX_WORK)
