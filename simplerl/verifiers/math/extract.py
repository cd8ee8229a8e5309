r"""The final answer of a response: its last box, and for models that do not box what they say the answer is.

Mode `reward` takes the last `\boxed{}` or nothing. Mode `evaluation` joins boxes that stand side by side into one list,
and falls back to `<answer>` tags, to "the answer is", to the last formula and to the last number, in this order.
Every search looks at the end of the text first and at a bounded part of it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from simplerl.verifiers.base import Mode

STOPS = ("</s>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>")
TAIL = 4000
"""Characters at the end of a response in which the fallbacks look."""
MAX_BOXES = 16
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
# As TeX reads it: a number (a little more than TeX), a command, or a single letter.
_BARE = re.compile(r"\s*([-+]?\d[\d.,/]*(?<![.,])|\\[a-zA-Z]+[^\s$]*|[A-Za-z](?![A-Za-z0-9]))")
_ECHO = re.compile(r"(?:within|inside|in(?:to)?|using|with(?: a)?)\s*[`$'\"(]*\s*\\*$", re.IGNORECASE)
_JOINER = re.compile(r"(?:[\s,;$&]|\\quad|\\qquad|\\text\s*\{[\s,]*and[\s,]*\}|\band\b|\\[,;\s()\[\]]|\\\\)*")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:(?:final\s+|correct\s+)?answers?(?:\s+(?:is|are)\s*:?|\s+would\s+be|\s+should\s+be|\s*:|\s*=)|(?:^|\n)#+\s*(?:final\s+)?answer\s*\n|####|(?:^|\n)\s*A:)\**\s*",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(.+?)(?<!\\)\$", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+\u2212]?\s?(?:\$\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+[.,]\d+|\.\d+|\d+)(?:\s?/\s?\d+)?"
    r"(?:\s*\$?\s*(?:\\?%|percent\b|pct\b))?"
)
_SENTENCE = re.compile(r"\n\s*\n|\.\s+(?=[A-Z])|\.\s*$|\n(?=\S)", re.MULTILINE)
# Runs of blanks, which would make searches that allow for them slow.
_BLANKS = re.compile(r"[^\S\n]{2,}")
_LETTER = r"\**\(?([A-J])\)?(?![\w'])"
_CHOICES = (
    re.compile(rf"(?i:answer|option|choice)\s?(?i:is|:)?(?:\s(?:for\s+sure|clearly|therefore))?\s?:?\s?{_LETTER}"),
    re.compile(rf"(?:[Ii]t's|is|think|choose|pick|select|[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),?\s{_LETTER}"),
    re.compile(r"^[ *]*\(?([A-J])\)?[.:)](?!\w)", re.MULTILINE),
    re.compile(r"^\W*([A-J])\W*$"),
)
_ADVERB = re.compile(
    r"(?:(?:approximately|about|therefore|then|thus|simply|just|equal to|given by)\s+)+", re.IGNORECASE
)
_VALUES = re.compile(rf"{_NUMBER.pattern}(?:\s*(?:,|,?\s(?:and|or))\s*{_NUMBER.pattern})*")


@dataclass(frozen=True, slots=True)
class Extraction:
    """`answer` is None where there is none; `method` says how it was found, or why not."""

    answer: str | None
    method: str


@dataclass(frozen=True, slots=True)
class Box:
    """A box and its place in the text: `text[start:end]` is the whole of it."""

    content: str
    start: int
    end: int


def extract(text: str, mode: Mode, choice: bool = False) -> Extraction:
    """The final answer of a response. `choice`: the gold answer is a letter, which changes the fallbacks only."""
    text = cut(text)
    found = last_boxes(text, joined=mode == "evaluation")
    if found.answer is not None or mode == "reward" or found.method == "unclosed box":
        return found
    return fallback(text[-TAIL:], choice)


def cut(text: str) -> str:
    """The text before the first end token that was written out."""
    ends = [place for stop in STOPS if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


# --- boxes ----------------------------------------------------------------------------------------------------------


def last_boxes(text: str, joined: bool) -> Extraction:
    r"""The last box; empty ones that repeat the prompt's own `\boxed{}` do not count."""
    end = len(text)
    why = "no box"
    for _ in range(MAX_BOXES):
        start = box_start(text, end)
        if start < 0:
            return Extraction(None, why)
        box = box_at(text, start)
        if box is None:
            return Extraction(None, "unclosed box")
        if box.content:
            answers = [box.content, *(before(text, box) if joined else ())]
            return Extraction(", ".join(reversed(list(dict.fromkeys(answers)))), "boxes" if len(answers) > 1 else "box")
        if not _ECHO.search(text, max(0, start - 40), start):
            return Extraction(None, "empty box")
        why, end = "empty box", start
    return Extraction(None, why)


def box_start(text: str, end: int) -> int:
    r"""Where the last `\boxed` or `\fbox` before `end` begins, or -1. `\boxedtext` is another command."""
    while (start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        if _BOX.match(text, start):
            return start
        end = start
    return -1


def box_at(text: str, start: int) -> Box | None:
    r"""The box that begins there: `\boxed{...}` with balanced braces, or `\boxed 4`. None if it is never closed."""
    brace = opened = start + len("\\boxed" if text.startswith("\\boxed", start) else "\\fbox")
    while brace < len(text) and text[brace].isspace():
        brace += 1
    if not text.startswith("{", brace):
        bare = _BARE.match(text, opened)
        return Box(bare[1] if bare else "", start, bare.end() if bare else opened)
    end = closing(text, brace)
    return None if end < 0 else Box(text[brace + 1 : end].strip(), start, end + 1)


def closing(text: str, brace: int) -> int:
    """Where the group that opens there is closed, or -1. Escaped braces are text."""
    depth = 0
    for match in re.finditer(r"\\[\\{}]|[{}]", text[brace:]):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return brace + match.start()
    return -1


def before(text: str, box: Box) -> list[str]:
    """The boxes before, as long as only commas, "and" or blanks stand between; nearest first."""
    found = []
    for _ in range(MAX_BOXES):
        start = box_start(text, box.start)
        previous = box_at(text, start) if start >= 0 else None
        if previous is None or not previous.content or previous.end > box.start:
            break
        if not _JOINER.fullmatch(text, previous.end, box.start):
            break
        found.append(previous.content)
        box = previous
    return found


# --- without a box --------------------------------------------------------------------------------------------------


def fallback(text: str, choice: bool) -> Extraction:
    text = _BLANKS.sub(" ", text).strip()
    tags = _TAG.findall(text)
    if tags and tags[-1].strip():
        return Extraction(tags[-1].strip(), "answer tag")
    if choice and (letter := chosen_letter(text)):
        return Extraction(letter, "choice")
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        said = what_is_said(text[phrases[-1].end() :])
        if said:
            return Extraction(said, "the answer is")
    last = last_value(text)
    return Extraction(last, "last value") if last else Extraction(None, "nothing")


def chosen_letter(text: str) -> str | None:
    for pattern in _CHOICES:
        found = pattern.findall(text)
        if found:
            return found[-1].upper()
    return None


def what_is_said(text: str) -> str | None:
    """The value in the sentence after "the answer is"."""
    text = text.strip().lstrip(":*= \n")
    sentence = _SENTENCE.split(text, maxsplit=1)[0].strip().strip("*").strip()
    formula = _FORMULA.match(sentence)
    if formula:
        return inner(formula) + percent_after(sentence[formula.end() :])
    sentence = _ADVERB.sub("", sentence, count=1) if _ADVERB.match(sentence) else sentence
    short = sentence.rstrip(".").strip()
    if len(short.split()) <= 4 and not _FORMULA.search(short):
        return short or None
    values = _VALUES.match(sentence)
    if values and not sentence[values.end() :].lstrip().startswith(("<", ">", "=", "\\")):
        return values[0].replace("$", "")
    return last_value(sentence) or short or None


def percent_after(text: str) -> str:
    return "\\%" if re.match(r"\s*(?:\\?%|percent\b|pct\b)", text) else ""


def inner(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def last_value(text: str) -> str | None:
    """The last formula or the last number, whichever stands later."""
    formula = next(iter(deque(_FORMULA.finditer(text), maxlen=1)), None)
    number = next(iter(deque(_NUMBER.finditer(text), maxlen=1)), None)
    if formula and (number is None or number.start() < formula.end()):
        return inner(formula) + percent_after(text[formula.end() :])
    return number[0].strip().rstrip(".,").replace("$", "") if number else None
