"""The plain verifier: the last \\boxed{} of the response against the gold, as a string or as an exact number."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from typing import Literal

from simplerl.config import PluginConfig
from simplerl.types import Verdict

# An answer longer than this is no answer; it also bounds what Fraction has to read.
MAX_ANSWER = 200
NUMBER = re.compile(r"[+-]?\d{1,60}(\.\d{1,60})?(/[+-]?\d{1,60})?")


class Config(PluginConfig):
    """Nothing to set."""

    name: Literal["last-box"] = "last-box"


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...} with balanced braces; None where there is none, or it is never closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return None


def number(text: str) -> Fraction | None:
    """An integer, a decimal or a quotient of integers, exactly."""
    plain = text.replace(" ", "").replace("$", "").replace(",", "")
    if not NUMBER.fullmatch(plain):
        return None
    above, _, below = plain.partition("/")
    if below and int(below) == 0:
        return None
    return Fraction(above) / Fraction(below or 1)


def equal(answer: str, gold: str) -> tuple[bool, str]:
    """Whether two answers are equal, and what decided."""
    if "".join(answer.split()) == "".join(gold.split()):
        return True, "string"
    a, b = number(answer), number(gold)
    return (a is not None and a == b), "number" if a is not None and b is not None else "string"


class LastBox:
    """Compares the last box."""

    def verify(self, response: str, gold: str) -> Verdict:
        started = time.perf_counter()
        answer = last_box(response)
        if not answer or len(answer) > MAX_ANSWER:
            return Verdict("no_answer", answer, "no box", time.perf_counter() - started)
        correct, method = equal(answer, gold)
        return Verdict("correct" if correct else "wrong", answer, method, time.perf_counter() - started)

    def close(self) -> None:
        pass


def build(config: Config) -> LastBox:
    return LastBox()
