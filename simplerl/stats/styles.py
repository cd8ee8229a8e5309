"""Rules that say in which style a response is written. Regular expressions only, so anyone can check a count.

| style      | a response has it when                                                                          |
|------------|-------------------------------------------------------------------------------------------------|
| code       | it opens a fenced Python block, or holds a call `print(`, or a function definition `def name(`  |
| reflection | it holds one of the self-check keywords below, as whole words, in upper or lower case           |
| unboxed    | it nowhere opens a `\\boxed{`                                                                     |

The rules count words, not intentions: "they wait for the bus" counts as a self-check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The keywords the SimpleRL-Zero evaluation counts, and the forms of the same phrases they miss.
PUBLISHED_KEYWORDS = ("recheck", "rethink", "try again", "wait", "alternatively", "retry", "however")
MORE_KEYWORDS = (
    "re-check", "re-think", "re-try", "re-examine", "reexamine", "re-evaluate", "reevaluate", "reconsider",
    "let me check", "let's check", "let us check", "let me verify", "let's verify", "let us verify",
    "check again", "double-check", "double check", "start over",
)  # fmt: skip

_KEYWORDS = sorted((*PUBLISHED_KEYWORDS, *MORE_KEYWORDS), key=len, reverse=True)
REFLECTION = re.compile(
    r"\b(?:" + "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in _KEYWORDS) + r")\b", re.IGNORECASE
)
CODE = re.compile(r"```\s*(?:python|py)\b|\bprint\(|\bdef\s+\w+\(", re.IGNORECASE)
CODE_BLOCK = re.compile(r"```\s*(?:python|py)\b.*?(?:```|\Z)", re.IGNORECASE | re.DOTALL)
BOX = re.compile(r"\\boxed\s*\{")


def has_code(text: str) -> bool:
    """Whether the response holds program code."""
    return CODE.search(text) is not None


def has_reflection(text: str) -> bool:
    """Whether the response checks or doubts itself in words."""
    return REFLECTION.search(text) is not None


def is_unboxed(text: str) -> bool:
    r"""Whether the response never opens a `\boxed{`."""
    return BOX.search(text) is None


STYLES = {"code": has_code, "reflection": has_reflection, "unboxed": is_unboxed}


def style_shares(texts: Iterable[str]) -> dict[str, float]:
    """Share of responses, 0 to 1, in each style; NaN when there are no responses."""
    responses = list(texts)
    if not responses:
        return dict.fromkeys(STYLES, float("nan"))
    return {name: sum(map(rule, responses)) / len(responses) for name, rule in STYLES.items()}
