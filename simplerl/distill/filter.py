"""Select the responses that become training data: each is kept, or left out by the first rule that it breaks.

| outcome       | left out because                                                            |
|---------------|-----------------------------------------------------------------------------|
| refused       | the teacher gave no response                                                |
| error         | the verifier failed: nobody knows whether it is right                       |
| no_answer     | it gives no final answer                                                    |
| wrong         | its answer is not the gold one                                              |
| truncated     | it reached the limit of tokens                                              |
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

from simplerl.config import FilterConfig
from simplerl.distill.letters import other_letters
from simplerl.distill.teachers.base import Answer, Asked
from simplerl.stats.repetition import ends_in_loop
from simplerl.stats.styles import has_code
from simplerl.types import Verdict

FilterOutcome = Literal[
    "kept", "refused", "error", "no_answer", "wrong", "truncated", "short", "long", "code", "loop", "other_letters",
    "duplicate", "surplus",
]  # fmt: skip
OUTCOMES: tuple[FilterOutcome, ...] = get_args(FilterOutcome)
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Response:
    """A question, the teacher's answer, and its verdict; a refusal has no verdict."""

    asked: Asked
    answer: Answer
    verdict: Verdict | None

    @property
    def tokens(self) -> int:
        """Tokens by the teacher's count, or an estimate if it gave none."""
        estimate = -(-len(self.answer.text) // CHARACTERS_PER_TOKEN)
        return estimate if self.answer.tokens is None else self.answer.tokens


def decide(responses: Sequence[Response], rules: FilterConfig) -> list[FilterOutcome]:
    """The outcome of each response."""
    outcomes: dict[str, FilterOutcome] = {each.asked.id: fault(each, rules) or "kept" for each in responses}
    outcomes |= dict.fromkeys(duplicates(_kept(responses, outcomes)), "duplicate")
    outcomes |= dict.fromkeys(surplus(_kept(responses, outcomes), rules), "surplus")
    return [outcomes[each.asked.id] for each in responses]


def _kept(responses: Sequence[Response], outcomes: Mapping[str, FilterOutcome]) -> list[Response]:
    return [each for each in responses if outcomes[each.asked.id] == "kept"]


def fault(response: Response, rules: FilterConfig) -> FilterOutcome | None:
    """The first rule that a response breaks by itself. None: it breaks none."""
    if response.verdict is None:
        return "refused"
    if response.verdict.label != "correct":
        return response.verdict.label
    return next((name for name, breaks in RULES.items() if breaks(response, rules)), None)


RULES: Mapping[FilterOutcome, Callable[[Response, FilterConfig], bool]] = {
    "truncated": lambda response, rules: response.answer.finish_reason == "length",
    "short": lambda response, rules: response.tokens < rules.min_tokens,
    "long": lambda response, rules: rules.max_tokens is not None and response.tokens > rules.max_tokens,
    "code": lambda response, rules: not rules.code and has_code(response.answer.text),
    "loop": lambda response, rules: not rules.loops and ends_in_loop(response.answer.text),
    "other_letters": lambda response, rules: other_letters(response.answer.text) > rules.other_letters,
}
"""Order in which the responses to a problem are considered."""


def duplicates(responses: Sequence[Response]) -> list[str]:
    """Ids of responses that repeat an earlier response to the same question."""
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


def surplus(responses: Sequence[Response], rules: FilterConfig) -> list[str]:
    """Ids of responses that `choose` ranks after the first `per_problem` of their problem."""
    groups: dict[str, list[Response]] = {}
    for each in responses:
        groups.setdefault(each.asked.problem.id, []).append(each)
    ranked = (sorted(group, key=lambda each: _rank(each, rules.choose)) for group in groups.values())
    return [each.asked.id for group in ranked for each in group[rules.per_problem :]]


def _rank(response: Response, choose: str) -> tuple[int, int]:
    by_length = {"first": 0, "shortest": response.tokens, "longest": -response.tokens}
    return by_length[choose], response.asked.sample_index
