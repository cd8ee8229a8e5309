"""A cursor over the tokens of one answer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from simplerl.verifiers.math.tokens import Commas, Token, tokenize
from simplerl.verifiers.math.tree import Node

SEPARATORS = {",", ";", "and", "or"}
IGNORED = {"$", "\\$", "\\(", "\\)", "\\[", "\\]", "\\ ", "\\/", "\\-", "\\@"}


class Unreadable(ValueError):
    """Not the notation of an answer."""


class Beyond(Unreadable):
    """Mathematics that only the symbolic path can read."""


class Reader(ABC):
    """Where a parser is in its text.

    `bars`: how many `|` are open; `conditions`: how many sets, where `:` is "such that"; `depth`: how deep it nests.
    """

    def __init__(self, text: str, commas: Commas, depth: int = 0) -> None:
        self.text, self.depth = text, depth
        self.commas: Commas = commas
        self.tokens = [t for t in tokenize(text, commas) if t.text not in IGNORED]
        self.at = 0
        self.bars = 0
        self.conditions = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        if self.next.kind == "end":
            raise Unreadable("ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, *texts: str) -> bool:
        if self.next.text in texts and self.next.kind != "end":
            self.at += 1
            return True
        return False

    def expect(self, *texts: str) -> str:
        if self.next.text not in texts:
            raise Unreadable(f"{self.next.text!r} where one of {texts} should be")
        return self.take().text

    def group_text(self) -> str:
        """The raw text of a braced group, or of the next token."""
        if not self.accept("{"):
            return self.take().text
        start, depth = self.next.start, 1
        while depth:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token.text, 0)
        return self.text[start : self.tokens[self.at - 1].start]

    # What the parts of the grammar ask of each other.

    @abstractmethod
    def answer(self) -> Node: ...

    @abstractmethod
    def listing(self) -> Node: ...

    @abstractmethod
    def relation(self) -> Node: ...

    @abstractmethod
    def sum(self) -> Node: ...

    @abstractmethod
    def power(self) -> Node: ...

    @abstractmethod
    def signed_power(self) -> Node: ...

    @abstractmethod
    def starts_factor(self) -> bool: ...

    @abstractmethod
    def starts_unit(self, node: Node) -> bool: ...

    @abstractmethod
    def juxtaposed(self, left: Node) -> Node: ...

    @abstractmethod
    def joiner(self) -> str: ...

    @abstractmethod
    def inner(self, text: str) -> Node:
        """What a piece of text inside this one says, read by a parser of its own."""
