"""What a teacher is: questions in, each answer out as it arrives. Nothing here imports torch.

A teacher of one's own is one file with a class `Config(TeacherConfig)` and a function `build(config, sampling)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from simplerl.config import PluginConfig
from simplerl.types import Problem

AnswerEnd = Literal["stop", "length", "refused"]


class TeacherConfig(PluginConfig):
    """Settings every teacher has."""

    may_change: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that change no answer: how patiently is asked, and where."""

    model: str
    """Which model answers."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One response to ask for. `seed` depends on the run's seed, the problem and the sample's number alone."""

    id: str
    problem: Problem
    sample_index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question. `tokens` is None where the teacher does not count them.

    "refused": there will be no response to this question, for the `reason` given; `text` is empty.
    """

    id: str
    text: str
    tokens: int | None
    finish_reason: AnswerEnd
    reason: str | None = None
    prompt_tokens: int | None = None


class Teacher(Protocol):
    """A source of long responses."""

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """One answer to each question, handed over the moment it arrives, in any order."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What makes the answers, as plain JSON without secrets. A folder goes on with the same alone; what stands
        under "url" and "versions" may differ from session to session."""
        ...

    def close(self) -> None: ...


def short_name(model: str) -> str:
    """A model without its folders; an export (`RUN/exports/final`) is called by its run."""
    path = Path(model)
    return path.parents[1].name if path.parent.name == "exports" else path.name
