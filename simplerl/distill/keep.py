"""Which responses become training data. Each has one fate: it is kept, or the first rule that it breaks leaves it out.

| fate          | left out because                                                            |
|---------------|-----------------------------------------------------------------------------|
| refused       | the teacher gave no response                                                |
| error         | the verifier failed: nobody knows whether it is right                       |
| no_answer     | it gives no final answer                                                    |
| wrong         | its answer is not the gold one                                              |
| cut           | it reached the limit of tokens                                              |
| short, long   | its length is outside the window                                            |
| code          | it holds program code                                                       |
| loop          | it ends in a loop                                                           |
| other_letters | too many of its letters are neither Latin nor Greek                         |
| duplicate     | the same question has this response already, but for white space            |
| surplus       | its problem has enough responses without it                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from simplerl.config import KeepConfig
from simplerl.distill.letters import other_letters
from simplerl.distill.teachers.base import Answer, Asked
from simplerl.stats.repetition import ends_in_loop
from simplerl.stats.styles import has_code
from simplerl.types import Verdict

Fate = Literal[
    "kept", "refused", "error", "no_answer", "wrong", "cut", "short", "long", "code", "loop", "other_letters",
    "duplicate", "surplus",
]  # fmt: skip
FATES: tuple[Fate, ...] = get_args(Fate)
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Response:
    """A question, what the teacher said, and whether that is right; a refusal has no verdict."""

    asked: Asked
    answer: Answer
    verdict: Verdict | None

    @property
    def tokens(self) -> int:
        """The teacher's count, or an estimate where it gave none."""
        estimate = -(-len(self.answer.text) // CHARACTERS_PER_TOKEN)
        return estimate if self.answer.tokens is None else self.answer.tokens


def decide(responses: Sequence[Response], keep: KeepConfig) -> list[Fate]:
    """The fate of each response."""
    fates: dict[str, Fate] = {each.asked.id: fault(each, keep) or "kept" for each in responses}
    fates |= dict.fromkeys(duplicates(_kept(responses, fates)), "duplicate")
    fates |= dict.fromkeys(surplus(_kept(responses, fates), keep), "surplus")
    return [fates[each.asked.id] for each in responses]


def _kept(responses: Sequence[Response], fates: Mapping[str, Fate]) -> list[Response]:
    return [each for each in responses if fates[each.asked.id] == "kept"]


def fault(response: Response, keep: KeepConfig) -> Fate | None:
    """The first rule that a response breaks by itself; None where it breaks none."""
    if response.verdict is None:
        return "refused"
    if response.verdict.label != "correct":
        return response.verdict.label
    return next((name for name, breaks in RULES.items() if breaks(response, keep)), None)


RULES: Mapping[Fate, Callable[[Response, KeepConfig], bool]] = {
    "cut": lambda response, keep: response.answer.finish_reason == "length",
    "short": lambda response, keep: response.tokens < keep.min_tokens,
    "long": lambda response, keep: keep.max_tokens is not None and response.tokens > keep.max_tokens,
    "code": lambda response, keep: not keep.code and has_code(response.answer.text),
    "loop": lambda response, keep: not keep.loops and ends_in_loop(response.answer.text),
    "other_letters": lambda response, keep: other_letters(response.answer.text) > keep.other_letters,
}
"""In the order in which a right answer is looked at."""


def duplicates(responses: Sequence[Response]) -> list[str]:
    """Identifiers of responses that came before, to the same question."""
    seen: set[tuple[str, str]] = set()
    found = []
    for each in responses:
        key = (_uniform(each.asked.problem.question), _uniform(each.answer.text))
        if key in seen:
            found.append(each.asked.id)
        seen.add(key)
    return found


def _uniform(text: str) -> str:
    return " ".join(text.split())


def surplus(responses: Sequence[Response], keep: KeepConfig) -> list[str]:
    """Identifiers of the responses that `choose` ranks behind the first `per_problem` of their problem."""
    groups: dict[str, list[Response]] = {}
    for each in responses:
        groups.setdefault(each.asked.problem.id, []).append(each)
    ranked = (sorted(group, key=lambda each: _rank(each, keep.choose)) for group in groups.values())
    return [each.asked.id for group in ranked for each in group[keep.per_problem :]]


def _rank(response: Response, choose: str) -> tuple[int, int]:
    by_length = {"first": 0, "shortest": response.tokens, "longest": -response.tokens}
    return by_length[choose], response.asked.sample_index
